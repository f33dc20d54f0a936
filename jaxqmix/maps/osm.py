"""OpenStreetMap's XML (.osm): ways and multipolygon relations that are buildings."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from jaxqmix.maps.buildings import (
    WGS84,
    Building,
    Heights,
    MapError,
    Polygon,
    Survey,
    is_building,
)


def read_buildings(path: Path, default_height: float) -> Survey:
    """The buildings of an .osm file; those cut off at its border are left out.

    Args:
      path: the file.
      default_height: of buildings that tell none, metres.

    Raises:
      MapError: on XML that cannot be parsed, or naming a node that is wrong.
    """
    nodes: dict[str, tuple[float, float]] = {}
    ways: dict[str, list[str]] = {}
    tagged, relations = [], []
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "node":
                nodes[element.get("id", "")] = place(element, path)
            elif element.tag == "way":
                key = element.get("id", "")
                ways[key] = [part.get("ref", "") for part in element.iter("nd")]
                tagged.append((key, tags_of(element)))
            elif element.tag == "relation":
                relations.append((element.get("id", ""), tags_of(element), members(element)))
            if element.tag in ("node", "way", "relation"):
                element.clear()
    except ElementTree.ParseError as error:
        raise MapError(path, f"it is no XML: {error}") from None
    heights, found, cut = Heights(default_height), [], []
    areas = [(f"way {k}", tags, [("outer", k)]) for k, tags in tagged]
    areas += [(f"relation {k}", tags, of) for k, tags, of in relations if is_area(tags)]
    for name, tags, parts in areas:
        if not is_building(tags):
            continue
        polygon = assemble(parts, ways, nodes)
        if polygon is None:
            cut.append(name)
        else:
            found.append(Building([polygon], heights.of(tags, name)))
    notes = heights.notes(len(found))
    if cut:
        notes.append(f"{len(cut):,} buildings are not whole and left out, the first: {cut[0]}")
    return Survey(found, WGS84, notes)


def place(element: ElementTree.Element, path: Path) -> tuple[float, float]:
    """Latitude and longitude of a node; deleted ones have none."""
    if element.get("visible") == "false":
        return (np.nan, np.nan)
    try:
        latitude, longitude = float(element.get("lat", "")), float(element.get("lon", ""))
    except ValueError:
        latitude = longitude = np.inf
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        given = f"lat = {element.get('lat')}, lon = {element.get('lon')}"
        raise MapError(path, f"node {element.get('id')}: {given} is no place in degrees")
    return latitude, longitude


def tags_of(element: ElementTree.Element) -> dict[str, str]:
    """The tags of a way or a relation."""
    return {tag.get("k", ""): tag.get("v", "") for tag in element.iter("tag")}


def members(element: ElementTree.Element) -> list[tuple[str, str]]:
    """Role and way of a relation's members; a role that is not given is the outline's."""
    return [
        (part.get("role") or "outer", part.get("ref", ""))
        for part in element.iter("member")
        if part.get("type") == "way"
    ]


def is_area(tags: dict[str, str]) -> bool:
    """Whether a relation describes an area."""
    return tags.get("type") == "multipolygon"


def assemble(
    parts: list[tuple[str, str]],
    ways: dict[str, list[str]],
    nodes: dict[str, tuple[float, float]],
) -> Polygon | None:
    """The closed rings [n, 2] (latitude, longitude) of ways; None when some are not whole.

    Outlines and holes are told apart by the even-odd rule, so that roles need not be right.
    """
    lines = [list(ways.get(key, ())) for _, key in parts]
    if not lines or any(len(line) < 2 for line in lines):
        return None
    rings = []
    while lines:
        ring = lines.pop()
        while ring[0] != ring[-1]:
            following = next((line for line in lines if ring[-1] in (line[0], line[-1])), None)
            if following is None:
                return None
            lines.remove(following)
            ring += (following if following[0] == ring[-1] else following[::-1])[1:]
        points = np.array([nodes.get(node, (np.nan, np.nan)) for node in ring])
        if len(points) < 4 or not np.isfinite(points).all():
            return None
        rings.append(points)
    return rings
