"""Pictures of a recorded episode: a still, an animation or a 3-D replay, chosen by file ending.

Nothing here needs a display. Everywhere north is up: y, the row, grows towards the south.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxqmix.config import require

if TYPE_CHECKING:
    from jaxqmix.types import Episode

ENDINGS = (".png", ".gif", ".mp4", ".html")


def render(
    episode: Episode,
    out: str | Path,
    *,
    cell_size: float,
    title: str = "",
    other: Episode | None = None,
    other_title: str = "",
    side: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a picture of an episode.

    Args:
      episode: one recorded episode of one swarm; arrays may be NumPy.
      out: the file to write; its ending, .png, .gif, .mp4 or .html, decides what it becomes.
      cell_size: side of a grid cell, metres.
      title: shown above the map.
      other: a second episode, shown at the side of the first; the one that ends first waits.
      other_title: shown above the second map.
      side: longer side of a map in a .gif or .mp4, pixels; chosen by default.
      progress: called as progress(done, total) after every frame.

    Returns:
      The path written. Raises `ConfigError` for another ending, for a batch of episodes, and for
      .mp4 without the extra `video`.
    """
    from jaxqmix.render.scene import trim

    out = Path(out)
    ending = out.suffix.lower()
    require(ending in ENDINGS, "out", out, "must end in .png, .gif, .mp4 or .html")
    require(cell_size > 0, "cell_size", cell_size, "must be greater than 0")
    require(side is None or side > 0, "side", side, "must be greater than 0")
    episodes = [trim(item) for item in (episode, other) if item is not None]
    titles = [title, other_title][: len(episodes)]
    report = progress or (lambda done, total: None)
    out.parent.mkdir(parents=True, exist_ok=True)
    if ending == ".png":
        from jaxqmix.render.still import write_still

        write_still(episodes, titles, out, cell_size)
        report(1, 1)
    elif ending == ".html":
        from jaxqmix.render.replay import write_replay

        write_replay(episodes, titles, out, cell_size)
        report(1, 1)
    else:
        from jaxqmix.render.animation import write_gif, write_mp4

        write = write_gif if ending == ".gif" else write_mp4
        write(episodes, titles, out, cell_size, report, side)
    return out
