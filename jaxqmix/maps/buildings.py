"""Buildings as map files tell of them, and the grid of heights that they become."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxqmix.config import ConfigError
from jaxqmix.maps.citymap import TALLEST

STOREY = 3.0
"""Metres of a storey where only their number is known."""
UNITS = {"": 1.0, "m": 1.0, "metre": 1.0, "metres": 1.0, "meter": 1.0, "meters": 1.0}
UNITS |= {"cm": 0.01, "km": 1000.0, "ft": 0.3048, "feet": 0.3048, "foot": 0.3048, "'": 0.3048}
"""Metres of each unit that heights are written in."""
HEIGHT_TAGS = ("height", "building:height", "measuredHeight")
LEVEL_TAGS = ("building:levels", "levels")
SAMPLES = 16
"""Points along a cell's side that are tested, at most; at least one a metre below that."""

Polygon = list[np.ndarray]
"""Rings [points, 2] in metres or degrees: outlines and holes, in any order."""


class MapError(ConfigError):
    """A map file that cannot be used; the message names the file and the feature."""

    def __init__(self, path: Any, problem: str):
        """One line."""
        super().__init__(f"file = {path} is not allowed: {problem}")


@dataclasses.dataclass(frozen=True)
class Building:
    """A footprint of one or several polygons, and its height in metres above the ground."""

    polygons: list[Polygon]
    height: float


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a reader found in a file.

    `system` names the coordinate reference system of the points, which are latitude and longitude
    for `WGS84`, and otherwise easting and northing in metres; None where the file names none.
    """

    buildings: list[Building]
    system: str | None
    notes: list[str] = dataclasses.field(default_factory=list)


WGS84 = "EPSG:4326"


def metres(value: Any) -> float | None:
    """A length as map files write it: 12, "12.5 m", "12,5", "40 ft", "39' 4"; None if unclear."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip().lower().replace(",", ".")
    if feet := re.fullmatch(r"(\d+)\s*'\s*(?:(\d+(?:\.\d+)?)\s*\"?)?", text):
        return int(feet[1]) * 0.3048 + float(feet[2] or 0) * 0.0254
    found = re.fullmatch(r"([-+]?\d+(?:\.\d+)?|[-+]?\.\d+)\s*([a-z']*)\.?", text)
    if not found or found[2] not in UNITS:
        return None
    return float(found[1]) * UNITS[found[2]]


class Heights:
    """Heights from tags, and an account of those that were missing or not understood."""

    def __init__(self, default: float):
        """`default` metres, where a building tells nothing."""
        self.default = default
        self.missing = 0
        self.unclear: list[str] = []

    def of(self, tags: Mapping[str, Any], name: str) -> float:
        """The height of a building: its `height`, else 3 m a level, else the default."""
        for keys, unit in ((HEIGHT_TAGS, 1.0), (LEVEL_TAGS, STOREY)):
            for key in keys:
                if not tells(tags.get(key)):
                    continue
                value = metres(tags[key])
                if value is not None and value >= 0:
                    return value * unit
                self.unclear.append(f"{name}: {key} = {tags[key]}")
        self.missing += 1
        return self.default

    def notes(self, buildings: int) -> list[str]:
        """What a person should know, a line each."""
        found = []
        if self.missing:
            told = f"{self.missing:,} of {buildings:,} buildings tell no height"
            found.append(f"{told}: they are taken as {self.default:g} m")
        if self.unclear:
            count = len(self.unclear)
            found.append(f"{count:,} heights were not understood, the first: {self.unclear[0]}")
        return found


def is_building(tags: Mapping[str, Any]) -> bool:
    """Whether OpenStreetMap's tags tell of a building or a part of one."""
    values = [tags.get(key) for key in ("building", "building:part")]
    return any(tells(value) and value != "no" for value in values)


def tells(value: Any) -> bool:
    """Whether a tag's value tells anything: tables have a column for each tag of any feature."""
    return value is not None and value is not False and value != ""


def rasterise(
    buildings: list[Building], rows: int, columns: int, cell_size: float
) -> tuple[np.ndarray, float]:
    """The grid of heights, and the highest roof in metres.

    A cell is as high as the highest building that covers any part of it, rounded up: a drone may
    be anywhere in its cell. Slivers between two of the points tested are overlooked. Polygons are
    in metres, x to the east and y to the south.

    Returns:
      Heights [H, W] uint8, and the highest roof before it was cut at 255 m.
    """
    heights = np.zeros((rows, columns), np.uint8)
    samples = max(1, min(SAMPLES, math.ceil(cell_size)))
    highest = 0.0
    for building in buildings:
        for polygon in building.polygons:
            points = np.concatenate(polygon)
            low = np.floor(points.min(axis=0) / cell_size).astype(int)
            high = np.floor(points.max(axis=0) / cell_size).astype(int) + 1
            (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, (columns, rows))
            if left >= right or top >= bottom:
                continue
            step = cell_size / samples
            x = (np.arange(left * samples, right * samples) + 0.5) * step
            y = (np.arange(top * samples, bottom * samples) + 0.5) * step
            inside = covers(polygon, x, y).reshape(bottom - top, samples, right - left, samples)
            part = heights[top:bottom, left:right]
            touched = inside.any(axis=(1, 3))
            if touched.any():
                highest = max(highest, building.height)
            roof = min(math.ceil(building.height - 1e-6), TALLEST)
            part[touched] = np.maximum(part[touched], roof)
    return heights, highest


def covers(polygon: Polygon, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether a polygon covers each point of a grid, bool [len(y), len(x)], x and y ascending.

    By the even-odd rule: a point is inside where its row crosses an odd number of edges before it.
    """
    starts = np.concatenate(polygon)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in polygon])
    (x0, y0), (x1, y1) = starts.T, ends.T
    row, edge = np.nonzero((y0 <= y[:, None]) != (y1 <= y[:, None]))
    share = (y[row] - y0[edge]) / (y1 - y0)[edge]
    crossing = x0[edge] + share * (x1 - x0)[edge]
    crossed = np.zeros((len(y), len(x) + 1), np.int32)
    np.add.at(crossed, (row, np.searchsorted(x, crossing)), 1)
    return np.cumsum(crossed, axis=1)[:, :-1] % 2 == 1
