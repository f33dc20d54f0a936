"""GeoJSON (RFC 7946): buildings, and no-fly zones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.maps.buildings import (
    HEIGHT_TAGS,
    LEVEL_TAGS,
    WGS84,
    Building,
    Heights,
    MapError,
    Polygon,
    Survey,
    is_building,
    metres,
    tells,
)

TELLING = ("building", "building:part", *HEIGHT_TAGS, *LEVEL_TAGS)
"""Properties of a building; where no feature has any, every polygon is one."""
ZONE_CEILING = 500.0
"""Ceiling of a no-fly zone that tells none, metres: nobody flies higher."""


def read_buildings(data: dict[str, Any], path: Path, default_height: float) -> Survey:
    """The buildings of a GeoJSON file.

    Args:
      data: the file, parsed.
      path: named in errors.
      default_height: of buildings that tell none, metres.

    Raises:
      MapError: naming the feature whose geometry is wrong.
    """
    heights, found = Heights(default_height), []
    system = reference_system(data)
    features = [
        (name, feature.get("properties") or {}, geometry)
        for name, feature, geometry in polygon_features(data, path)
    ]
    telling = any(tell_any(tags, TELLING) for _, tags, _ in features)
    for name, tags, geometry in features:
        if telling and not (is_building(tags) or tell_any(tags, TELLING[2:])):
            continue
        polygons = read_polygons(geometry, name, path, system)
        found.append(Building(polygons, heights.of(tags, name)))
    return Survey(found, system, heights.notes(len(found)))


def tell_any(tags: dict[str, Any], keys: Sequence[str]) -> bool:
    """Whether any of these tags has a value."""
    return any(tells(tags.get(key)) for key in keys)


def features_of(data: dict[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every feature with a name for messages."""
    whole = data.get("features") if data.get("type") == "FeatureCollection" else [data]
    if not isinstance(whole, list):
        raise MapError(path, "its features must be a list")
    for number, feature in enumerate(whole, 1):
        if not isinstance(feature, dict):
            raise MapError(path, f"feature {number} is no object")
        tags = feature.get("properties") or {}
        label = feature.get("id") or tags.get("@id") or tags.get("id") or tags.get("name")
        yield f"feature {number}" + (f" ({label})" if label else ""), feature


def polygon_features(
    data: dict[str, Any], path: Path
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, feature and geometry of every polygon, of those in collections too."""
    for name, feature in features_of(data, path):
        geometry = feature.get("geometry")
        parts = [geometry]
        if isinstance(geometry, dict) and geometry.get("type") == "GeometryCollection":
            parts = geometry.get("geometries") or []
        for part in parts:
            if part is None:
                continue  # RFC 7946 allows features without a place
            if not isinstance(part, dict):
                raise MapError(path, f"{name}: its geometry is no object")
            if part.get("type") in ("Polygon", "MultiPolygon"):
                yield name, feature, part


def reference_system(data: dict[str, Any]) -> str:
    """WGS 84, unless an older file names another by its EPSG number."""
    name = str(((data.get("crs") or {}).get("properties") or {}).get("name", ""))
    found = re.search(r"EPSG:+(\d+)$", name)
    return f"EPSG:{found[1]}" if found else WGS84


def read_polygons(geometry: dict[str, Any], name: str, path: Path, system: str) -> list[Polygon]:
    """Polygons of a geometry: points are latitude, longitude, or easting, northing."""
    try:
        nested = geometry["coordinates"]
        nested = [nested] if geometry["type"] == "Polygon" else nested
        polygons = [[np.array([p[:2] for p in ring], float) for ring in one] for one in nested]
        if not all(ring.shape[1:] == (2,) for one in polygons for ring in one):
            raise ValueError
    except (KeyError, TypeError, ValueError, IndexError):
        raise MapError(path, f"{name}: its coordinates are no polygon's") from None
    for polygon in polygons:
        if not polygon or any(len(ring) < 4 for ring in polygon):
            raise MapError(path, f"{name}: a ring must have at least 4 points")
        for ring in polygon:
            check_ring(ring, name, path, system)
    if system == WGS84:
        polygons = [[ring[:, ::-1] for ring in polygon] for polygon in polygons]
    return polygons


def check_ring(ring: np.ndarray, name: str, path: Path, system: str) -> None:
    """Raises `MapError` when a ring holds no finite numbers, or no degrees where it must."""
    if not np.isfinite(ring).all():
        raise MapError(path, f"{name}: its coordinates are not finite")
    if system == WGS84 and (np.abs(ring) > (180, 90)).any():
        x, y = ring[np.argmax((np.abs(ring) > (180, 90)).any(axis=1))]
        raise MapError(path, f"{name}: {x:g}, {y:g} is no longitude and latitude")


def read_zones(data: dict[str, Any], path: Path) -> list[tuple[str, np.ndarray, float, float]]:
    """No-fly zones: name, points [n, 2] (latitude, longitude), margin and ceiling in metres.

    A polygon gives its outline's points and margin 0; a point with a `radius` gives itself and the
    radius. The cylinder around both is the smallest around the points, widened by the margin.

    Raises:
      MapError: naming a feature that is neither, or whose radius or ceiling is not understood.
    """
    zones = []
    for name, feature in features_of(data, path):
        geometry, tags = feature.get("geometry") or {}, feature.get("properties") or {}
        kind = geometry.get("type")
        ceiling = metres(tags.get("ceiling", ZONE_CEILING))
        if ceiling is None or ceiling <= 0:
            raise MapError(path, f"{name}: ceiling = {tags['ceiling']} must be metres above 0")
        if kind in ("Polygon", "MultiPolygon"):
            for polygon in read_polygons(geometry, name, path, WGS84):
                zones.append((name, polygon[0], 0.0, ceiling))
        elif kind == "Point":
            radius = metres(tags.get("radius", ""))
            if radius is None or radius <= 0:
                given = tags.get("radius", "missing")
                raise MapError(path, f"{name}: radius = {given} must be metres above 0")
            try:
                longitude, latitude = map(float, geometry["coordinates"][:2])
            except (KeyError, TypeError, ValueError):
                raise MapError(path, f"{name}: its coordinates are no point's") from None
            check_ring(np.array([[longitude, latitude]]), name, path, WGS84)
            zones.append((name, np.array([[latitude, longitude]]), radius, ceiling))
        else:
            raise MapError(path, f"{name}: a zone must be a Polygon, or a Point with a radius")
    return zones
