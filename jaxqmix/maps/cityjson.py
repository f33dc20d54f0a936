"""CityJSON, versions 1 and 2: the surfaces of buildings, seen from above."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.maps.buildings import Building, Heights, MapError, Survey

KINDS = ("Building", "BuildingPart")
FLAT = 0.5
"""A geometry of less height is a footprint, metres; attributes then tell how high it reaches."""


def read_buildings(data: dict[str, Any], path: Path, default_height: float) -> Survey:
    """The buildings of a CityJSON file.

    Every surface of the finest geometry covers what lies below it, up to its highest point above
    the lowest point of its whole building; walls cover nothing. Of a footprint (lod 0, or ground
    surfaces alone) the attributes tell the height.

    Args:
      data: the file, parsed.
      path: named in errors.
      default_height: of footprints that tell none, metres.

    Raises:
      MapError: naming the object that is wrong.
    """
    objects, vertices = data.get("CityObjects"), read_vertices(data, path)
    if not isinstance(objects, dict):
        raise MapError(path, "it has no CityObjects")
    chosen = {key: one for key, one in objects.items() if one.get("type") in KINDS}
    surfaces = {key: finest(one, key, vertices, path) for key, one in chosen.items()}
    ground: dict[str, float] = {}
    for key, found in surfaces.items():
        if found:
            lowest = min(ring[:, 2].min() for surface in found for ring in surface)
            root = root_of(key, objects)
            ground[root] = min(ground.get(root, np.inf), lowest)
    tops_of = {
        key: [max(ring[:, 2].max() for ring in surface) - ground[root_of(key, objects)]
              for surface in found]
        for key, found in surfaces.items()
    }  # fmt: skip
    modelled = {
        root_of(key, objects) for key, tops in tops_of.items() if max(tops, default=0) >= FLAT
    }
    heights, buildings, empty = Heights(default_height), [], 0
    for key, found in surfaces.items():
        if not found:
            empty += not chosen[key].get("children")
            continue
        root, tops = root_of(key, objects), tops_of[key]
        if max(tops) < FLAT:
            if root in modelled:
                continue  # the footprint of what its parts or its whole tell better
            tags = objects[root].get("attributes", {}) | chosen[key].get("attributes", {})
            tops = [heights.of(tags, f"object {key}")] * len(tops)
        for surface, top in zip(found, tops, strict=True):
            buildings.append(Building([[ring[:, :2] for ring in surface]], float(top)))
    notes = heights.notes(len(chosen))
    if empty:
        notes.append(f"{empty:,} buildings have no geometry of their own and are left out")
    return Survey(buildings, reference_system(data), notes)


def read_vertices(data: dict[str, Any], path: Path) -> np.ndarray:
    """All points [n, 3] in metres, with the transform of compressed files applied."""
    version = str(data.get("version", ""))
    if not version.startswith(("1.", "2.")):
        raise MapError(path, f"CityJSON version {version or 'missing'} must be 1.x or 2.x")
    try:
        vertices = np.array(data["vertices"], float).reshape(-1, 3)
        if transform := data.get("transform"):
            scale, shift = np.array(transform["scale"], float), np.array(transform["translate"])
            vertices = vertices * scale + shift
    except (KeyError, TypeError, ValueError):
        raise MapError(path, "its vertices and transform are not those of CityJSON") from None
    if not np.isfinite(vertices).all():
        raise MapError(path, "its vertices must be finite numbers")
    return vertices


def root_of(key: str, objects: dict[str, Any]) -> str:
    """The building that a part belongs to."""
    seen = {key}
    while parents := objects.get(key, {}).get("parents"):
        if parents[0] in seen:
            break
        key = parents[0]
        seen.add(key)
    return key


def finest(one: dict[str, Any], key: str, vertices: np.ndarray, path: Path) -> list:
    """The surfaces (lists of rings [n, 3]) of an object's geometry of the highest lod."""
    geometries = [g for g in one.get("geometry") or [] if g.get("boundaries")]
    geometries = [g for g in geometries if g.get("type") != "GeometryInstance"]
    if not geometries:
        return []
    best = max(geometries, key=lambda geometry: str(geometry.get("lod", "")))
    try:
        return [
            [vertices[np.array(ring)] for ring in surface]
            for surface in surfaces_of(best["boundaries"])
        ]
    except (IndexError, TypeError, ValueError):
        raise MapError(path, f"object {key}: its boundaries are not those of CityJSON") from None


def surfaces_of(boundaries: list) -> Iterator[list]:
    """Every surface, a list of rings of vertex numbers, however deep shells and solids nest."""
    if isinstance(boundaries[0][0], int):
        yield boundaries
        return
    for part in boundaries:
        yield from surfaces_of(part)


def reference_system(data: dict[str, Any]) -> str | None:
    """Such as `EPSG:7415`, however the file writes it; None when it tells none."""
    name = str((data.get("metadata") or {}).get("referenceSystem", ""))
    found = re.search(r"EPSG\W+(?:\d+/)?(\d+)$", name)
    return f"EPSG:{found[1]}" if found else None
