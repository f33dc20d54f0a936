"""An episode as a moving picture: GIF with one shared palette, or MP4 with the extra `video`."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxqmix.config import ConfigError
from jaxqmix.render import painting, scene
from jaxqmix.types import Episode

GIF_SIDE, GIF_PAIR_SIDE, MP4_SIDE = 500, 400, 720
"""Longer side of a map in pixels: one GIF map, two of them, and MP4."""
GIF_FRAMES = 220
"""A GIF skips steps to have at most about so many frames."""
SECONDS = 14.0
"""Episodes play in about this time ..."""
SLOWEST, FASTEST = 8.0, 30.0
"""... within these frames per second."""
HOLD = 4.0
"""Seconds for which the last frame stands."""

Report = Callable[[int, int], None]


def shown_steps(length: int, most: int) -> list[int]:
    """The steps to show, at most about `most`: evenly spaced, with the first and the last."""
    stride = max(1, -(-length // most))
    return sorted({*range(0, length + 1, stride), length})


def frames_per_second(frames: int) -> float:
    """How fast to show so many frames."""
    return min(max(frames / SECONDS, SLOWEST), FASTEST)


def _frames(
    episodes: list[Episode],
    titles: list[str],
    cell_size: float,
    side: int,
    steps: list[int],
    report: Report,
) -> Iterator[np.ndarray]:
    """Frames of palette indices, uint8 [height, width]; of large cities every n-th cell, so that
    a map has no more than `side` pixels."""
    every = -(-max(max(episode.heights.shape) for episode in episodes) // side)
    episodes, cell_size = [scene.coarser(episode, every) for episode in episodes], cell_size * every
    panels = [
        painting.Panel(episode, title, cell_size, side)
        for episode, title in zip(episodes, titles, strict=True)
    ]
    sheet = painting.Sheet(panels)
    for done, step in enumerate(steps, start=1):
        yield sheet.paint(step, steps[-1])
        report(done, len(steps))


def write_gif(
    episodes: list[Episode],
    titles: list[str],
    out: Path,
    cell_size: float,
    report: Report,
    side: int | None = None,
) -> None:
    """Writes one or two trimmed episodes side by side as an endless GIF.

    Lengths are as in `render`: cell_size in metres, `side` in pixels.
    """
    from PIL import Image

    side = side or (GIF_SIDE if len(episodes) == 1 else GIF_PAIR_SIDE)
    steps = shown_steps(max(int(episode.length) for episode in episodes), GIF_FRAMES)
    # One more colour than the painter uses marks pixels that stay as they are.
    colours, same = painting.palette().tobytes() + bytes(3), painting.COLOURS
    images, before = [], None
    for frame in _frames(episodes, titles, cell_size, side, steps, report):
        changed = frame if before is None else np.where(frame == before, np.uint8(same), frame)
        image = Image.fromarray(changed)
        image.putpalette(colours)
        images.append(image)
        before = frame
    rate = frames_per_second(len(images))
    durations = [round(1000 / rate)] * len(images)
    durations[-1] += round(1000 * HOLD)
    images[0].save(
        out,
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        optimize=False,
        transparency=same,
        disposal=1,
    )


def write_mp4(
    episodes: list[Episode],
    titles: list[str],
    out: Path,
    cell_size: float,
    report: Report,
    side: int | None = None,
) -> None:
    """Writes one or two trimmed episodes side by side as an MP4; lengths as in `write_gif`."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        encoder_program = get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # or a package without the program
        raise ConfigError(f'out = {out} needs imageio-ffmpeg: pip install ".[video]"') from None
    steps = shown_steps(max(int(episode.length) for episode in episodes), 10_000)
    rate = frames_per_second(len(steps))
    colours = painting.palette()
    frames = _frames(episodes, titles, cell_size, side or MP4_SIDE, steps, report)
    picture = colours[next(frames)]
    height, width = picture.shape[:2]
    command = f"-y -v error -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i - -an"
    command += " -c:v libx264 -preset veryfast -crf 22 -pix_fmt yuv420p -movflags +faststart"
    # Not imageio_ffmpeg's own writer: it runs Python between fork and exec, which JAX's threads
    # forbid.
    encoder = subprocess.Popen(
        # Absolute, for before a colon it would read a protocol.
        [encoder_program, *command.split(), str(Path(out).absolute())],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    # An encoder that gives up early breaks the pipe; its return code tells.
    assert encoder.stdin is not None
    with contextlib.suppress(BrokenPipeError), encoder:
        encoder.stdin.write(picture)
        for frame in frames:
            picture = colours[frame]
            encoder.stdin.write(picture)
        for _ in range(round(rate * HOLD)):
            encoder.stdin.write(picture)
    if encoder.returncode:
        raise OSError(errno.EIO, "the video encoder could not write it", str(out))
