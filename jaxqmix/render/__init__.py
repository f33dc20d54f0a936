"""Pictures of a recorded episode: a still, an animation or a 3-D replay, chosen by file ending.

Nothing here needs a display. Everywhere north is up: y, the row, grows towards the south.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from jaxqmix.config import require

if TYPE_CHECKING:
    from jaxqmix.types import Episode

_WRITERS = {
    ".png": ("still", "write_still"),
    ".gif": ("animation", "write_gif"),
    ".mp4": ("animation", "write_mp4"),
    ".html": ("replay", "write_replay"),
}
"""A renderer is a file here, and an entry: the ending, the file, and the function in it that writes
(episodes, titles, out, cell_size, progress, side)."""
ENDINGS = tuple(_WRITERS)


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
      side: most pixels of the longer side of a map in a .gif or .mp4; chosen by default.
      progress: called as progress(done, total) after every frame.

    Returns:
      The path written. Raises `ConfigError` for another ending, for a batch of episodes, and for
      .mp4 without the extra `video`.
    """
    from jaxqmix.render.scene import trim

    out = Path(out)
    ending = out.suffix.lower()
    require(
        ending in ENDINGS, "out", out, f"must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
    )
    require(cell_size > 0, "cell_size", cell_size, "must be greater than 0")
    require(side is None or side > 0, "side", side, "must be greater than 0")
    episodes = [trim(item) for item in (episode, other) if item is not None]
    titles = [title, other_title][: len(episodes)]
    out.parent.mkdir(parents=True, exist_ok=True)
    file, writer = _WRITERS[ending]
    write = getattr(import_module(f"jaxqmix.render.{file}"), writer)
    write(episodes, titles, out, cell_size, progress or (lambda done, total: None), side)
    return out
