"""Episodes inside a notebook."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxqmix.config import ConfigError, require
from jaxqmix.render import render

if TYPE_CHECKING:
    from jaxqmix.types import Episode

KINDS = ("html", "gif", "png")
REPLAY_HEIGHT = 640
"""Height of a 3-D replay on the page, pixels."""
GIF_SIDE = 250
"""Longer side of the map in a GIF, pixels; smaller than in a file, since notebooks keep it."""


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
      An object that Jupyter displays. Raises `ConfigError` for another kind, for a batch of
      episodes, and without IPython.
    """
    require(kind in KINDS, "kind", kind, f"must be one of {', '.join(KINDS)}")
    try:
        from IPython import display
    except ImportError:
        raise ConfigError(
            f'kind = {kind} needs IPython to show it: pip install "jaxqmix[notebooks]"'
        ) from None
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
    if kind != "html":
        return display.Image(data=content, format=kind)
    # A page inside the page: neither one's style and scripts reach the other.
    page = html.escape(content.decode("utf-8"))
    style = f"width: 100%; height: {REPLAY_HEIGHT}px; border: 0; border-radius: 8px"
    allowed = 'sandbox="allow-scripts allow-downloads" allow="fullscreen" allowfullscreen'
    return display.HTML(f'<div><iframe srcdoc="{page}" style="{style}" {allowed}></iframe></div>')
