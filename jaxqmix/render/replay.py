"""A 3-D replay: one HTML file that holds everything and needs no network."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.config import require
from jaxqmix.render import scene
from jaxqmix.types import Array, Episode

UNIT = 0.1
"""Metres per count of a stored length; coarser only where a city is wider than 6.5 km."""
MAX_REPLAY_STEPS = 32_766
"""Steps, and one for never, fit into 16 bits."""
CONFLICT_BIT, BUILDING_BIT, VIOLATION_BIT = 4, 8, 16
"""Bits of a mark, above the two of the link; as in assets/world.js."""

DARK = {
    "panel": "#161c25",
    "raised": "#232c39",
    "line": "#3c4858",
    "ink": "#eef1f5",
    "soft": "#a9b4c3",
    "sky": "#1c2430",
    "sky-low": "#10151d",
    "slab": "#2b3542",
    "plate": "rgba(22, 28, 37, 0.72)",
    "first": "#6cc0f2",
    "second": "#f2a65a",
    "on-first": "#10202c",
    "unseen": "#566374",
    "seen": "#f0e9da",
    "fresh": "#ffb800",
    "hidden": "#15181e",
    "hatch": "#4a505b",
    "zone": "#ff7a9c",
    "zone-ink": "#ff9db8",
    "conflict": "#d3003f",
    "building-hit": "#7a45b0",
    "violation": "#e07b00",
    "on-mark": "#ffffff",
    "link": "#ffffff",
    "on-link": "#20242b",
}
"""Colours of the page and of its city, by the names that assets/replay.css uses."""
LIGHT = DARK | {
    "panel": "#ffffff",
    "raised": "#eef2f6",
    "line": "#c9d2dc",
    "ink": "#1b222c",
    "soft": "#576372",
    "sky": "#dfe8f1",
    "sky-low": "#f6f8fa",
    "slab": "#b4bfcb",
    "plate": "rgba(255, 255, 255, 0.8)",
    "first": "#1173b5",
    "second": "#c25a00",
    "on-first": "#ffffff",
    "unseen": "#7c8898",
    "seen": "#f7f2e6",
    "hidden": "#2a2e36",
    "hatch": "#646b77",
    "zone": "#b80046",
    "zone-ink": "#a8003c",
}
"""The same where the system prefers light pages."""


def write_replay(
    episodes: list[Episode],
    titles: list[str],
    out: Path,
    cell_size: float,
    report: Callable[[int, int], None],
    side: int | None = None,
) -> None:
    """Writes one or two trimmed episodes side by side as a replay that fits its window; cell_size
    in metres."""
    for episode in episodes:
        require(
            int(episode.length) <= MAX_REPLAY_STEPS,
            "episode.length",
            int(episode.length),
            f"a replay holds at most {MAX_REPLAY_STEPS} steps",
        )
    views = [
        pack(episode, title, cell_size) for episode, title in zip(episodes, titles, strict=True)
    ]
    data = json.dumps({"colours": list(DARK), "views": views}, separators=(",", ":"))
    words = " and ".join(title for title in titles if title)
    parts = {
        "title": html.escape(words or "Replay"),
        # No text of the user's can end the script element that holds it.
        "data": data.replace("<", "\\u003c"),
        "theme": theme_style(),
        "style": asset("replay.css"),
        "three": asset("three.min.js"),
        **{name: asset(f"{name}.js") for name in ("world", "flight", "timeline", "replay")},
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("replay.html"))
    out.write_text(page, encoding="utf-8")
    report(1, 1)


def asset(name: str) -> str:
    """The text of a file that is part of every replay."""
    return (resources.files("jaxqmix.render") / "assets" / name).read_text(encoding="utf-8")


def theme_style() -> str:
    """The colours of both themes as variables of a style sheet."""

    def variables(colours: dict[str, str]) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in colours.items())

    return (
        f":root {{ color-scheme: dark light; {variables(DARK)} }}\n"
        f"@media (prefers-color-scheme: light) {{ :root {{ {variables(LIGHT)} }} }}"
    )


def encode(array: Array, dtype: str) -> str:
    """An array in a little-endian type, as base64."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode("ascii")


def pack(episode: Episode, title: str, cell_size: float) -> dict[str, Any]:
    """What assets/replay.js decodes of a trimmed episode.

    Positions [T + 1, N, 3] are int16 counts of `unit` metres from the middle of the city on the
    ground; radii [T + 1, N] likewise. Marks [T, N] are a byte each: the link and bits of mishaps.
    """
    rows, columns = episode.heights.shape
    middle = np.array([columns * cell_size / 2, rows * cell_size / 2, 0.0])
    positions = np.asarray(episode.positions, np.float64) - middle
    unit = max(UNIT, float(np.abs(positions).max()) / 32_000)
    events = episode.events
    marks = np.asarray(episode.link, np.uint8)
    marks = marks + CONFLICT_BIT * events.conflict.astype(np.uint8)
    marks = marks + BUILDING_BIT * events.building_hit.astype(np.uint8)
    marks = marks + VIOLATION_BIT * events.violation.astype(np.uint8)
    return {
        "title": title,
        "rows": rows,
        "columns": columns,
        "cell": float(cell_size),
        "length": int(episode.length),
        "drones": positions.shape[1],
        "unit": unit,
        "heights": encode(episode.heights, "u1"),
        "coverable": encode(episode.coverable, "u1"),
        "seenAt": encode(episode.seen_at, "<i2"),
        "positions": encode(np.round(positions / unit), "<i2"),
        "radii": encode(np.round(episode.radii / unit), "<u2"),
        "marks": encode(marks, "u1"),
        "coverage": encode(episode.coverage, "<f4"),
        "colours": scene.drone_colours(positions.shape[1]).tolist(),
        "noFly": np.asarray(episode.no_fly, float).round(1).tolist(),
        "wind": np.asarray(episode.wind, float).round(2).tolist(),
        "windWords": scene.wind_words(episode.wind),
    }
