"""A 3-D replay: one HTML file that holds everything and needs no network."""

from __future__ import annotations

import base64
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.config import require
from jaxqmix.render import scene
from jaxqmix.types import Episode

UNIT = 0.1
"""Metres per count of a stored length; coarser only where a city is wider than 6.5 km."""
LONGEST = 32_767
"""Steps fit into 16 bits."""
FRESH = "#FFDE7A"
"""Ground seen a moment ago."""
CONFLICT_BIT, BUILDING_BIT, VIOLATION_BIT = 4, 8, 16
"""Bits of a mark, above the two of the link; as in assets/world.js."""


def write_replay(episodes: list[Episode], titles: list[str], out: Path, cell_size: float) -> None:
    """Writes one or two trimmed episodes side by side as a replay; cell_size in metres."""
    for episode in episodes:
        require(
            int(episode.length) <= LONGEST,
            "episode.length",
            int(episode.length),
            f"a replay holds at most {LONGEST} steps",
        )
    views = [
        pack(episode, title, cell_size) for episode, title in zip(episodes, titles, strict=True)
    ]
    data = json.dumps({"palette": palette(), "views": views}, separators=(",", ":"))
    words = " and ".join(title for title in titles if title)
    parts = {
        "title": html.escape(words or "Replay"),
        # No text of the user's can end the script element that holds it.
        "data": data.replace("<", "\\u003c"),
        "style": asset("replay.css"),
        "three": asset("three.min.js"),
        "world": asset("world.js"),
        "replay": asset("replay.js"),
        "unseen": scene.UNSEEN,
        "seen": scene.SEEN,
        "fresh": FRESH,
        "hidden": scene.HIDDEN,
        "noFly": "#FF5C8A",
        "conflict": scene.CONFLICT,
        "buildingHit": scene.BUILDING_HIT,
        "violation": scene.VIOLATION,
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("replay.html"))
    out.write_text(page, encoding="utf-8")


def asset(name: str) -> str:
    """The text of a file that is part of every replay."""
    return (resources.files("jaxqmix.render") / "assets" / name).read_text(encoding="utf-8")


def palette() -> dict[str, Any]:
    """The colours of a scene, as assets/world.js names them."""

    def pixel(colour: str) -> list[int]:
        return [*scene.rgb(colour).astype(int).tolist(), 255]

    return {
        "sky": "#141a23",
        "slab": "#2b3542",
        "noFly": "#E0205A",
        "conflict": scene.CONFLICT,
        "buildingHit": scene.BUILDING_HIT,
        "violation": scene.VIOLATION,
        "ground": {
            "unseen": pixel(scene.UNSEEN),
            "seen": pixel(scene.SEEN),
            "fresh": pixel(FRESH),
            "hidden": pixel(scene.HIDDEN),
        },
    }


def encode(array: np.ndarray, dtype: str) -> str:
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
