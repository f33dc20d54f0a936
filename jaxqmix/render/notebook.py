"""Episodes inside a notebook."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxqmix.config import require
from jaxqmix.render import render

if TYPE_CHECKING:
    from jaxqmix.types import Episode

KINDS = ("html", "gif", "png")
REPLAY_HEIGHT = 640
"""Height of a 3-D replay on the page, pixels."""
GIF_SIDE = 250
"""Longer side of the map in a GIF, pixels; smaller than in a file, since notebooks keep it."""


@dataclass(frozen=True)
class Shown:
    """What a notebook displays: the same picture in one or more MIME types.

    Readers that run no scripts and show no GIF, such as viewers of code, take the PNG.
    """

    data: dict[str, str]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self.data

    def __repr__(self) -> str:
        return f"an episode as {', '.join(self.data)}"


def show(
    episode: Episode,
    *,
    cell_size: float,
    kind: str = "html",
    title: str = "",
    other: Episode | None = None,
    other_title: str = "",
) -> Any:
    """Shows an episode below a notebook's cell; the picture is kept in the notebook.

    Args:
      episode: one recorded episode of one swarm.
      cell_size: side of a grid cell, metres.
      kind: `html` (3-D replay with a slider, about 1 MB in the notebook), `gif` or `png`.
      title: shown above the map.
      other: a second episode, shown at the side of the first.
      other_title: shown above the second map.

    Returns:
      An object that Jupyter displays. Raises `ConfigError` for another kind and for a batch of
      episodes.
    """
    require(kind in KINDS, "kind", kind, f"must be one of {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory() as folder:
        out = render(
            episode,
            Path(folder) / f"episode.{kind}",
            cell_size=cell_size,
            title=title,
            other=other,
            other_title=other_title,
            side=GIF_SIDE,
        )
        content = out.read_bytes()
    if kind == "png":
        return Shown({"image/png": _base64(content)})
    if kind == "gif":
        source = f"data:image/gif;base64,{_base64(content)}"
        words = html.escape(title or "a flight")
        shown = f'<img src="{source}" alt="{words}">'
    else:
        # A page inside the page: neither one's style and scripts reach the other.
        page = html.escape(content.decode("utf-8"))
        style = f"width: 100%; height: {REPLAY_HEIGHT}px; border: 0; border-radius: 8px"
        allowed = 'sandbox="allow-scripts allow-downloads" allow="fullscreen" allowfullscreen'
        shown = f'<div><iframe srcdoc="{page}" style="{style}" {allowed}></iframe></div>'
    episodes = [item for item in (episode, other) if item is not None]
    last = last_frame(episodes, [title, other_title], cell_size)
    return Shown({"text/html": shown, "image/png": _base64(last)})


def last_frame(episodes: list[Episode], titles: list[str], cell_size: float) -> bytes:
    """The end of one or two episodes, as a GIF would show it, in a small PNG."""
    from PIL import Image

    from jaxqmix.render import painting, scene

    panels = [
        painting.Panel(scene.trim(episode), title, cell_size, GIF_SIDE)
        for episode, title in zip(episodes, titles, strict=False)
    ]
    steps = max(panel.length for panel in panels)
    image = Image.fromarray(painting.Sheet(panels).paint(steps, steps))
    image.putpalette(painting.palette().tobytes())
    content = io.BytesIO()
    image.save(content, format="png", optimize=True)
    return content.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
