"""One recorded flight of the simulator as files that maps and ground stations read.

A policy reacts in flight; a file does not. It tells what the drones did in one episode, with its
wind, its losses and its luck.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from jaxqmix.config import ConfigError, EnvConfig, require
from jaxqmix.maps import load_maps
from jaxqmix.maps.citymap import CityMap, metres_per_degree, to_degrees
from jaxqmix.types import ACTIONS, Episode

STILL = 0.5
"""Consecutive places closer than this are one waypoint with a hold, metres."""
BEGIN = datetime(2000, 1, 1)
"""When a flight begins in files that need a date."""
CORNERS = 36
"""Corners of the polygon that stands for a circle."""
WAYPOINT, RETURN, TAKEOFF, SPEED = 16, 20, 22, 178
"""MAVLink's commands NAV_WAYPOINT, NAV_RETURN_TO_LAUNCH, NAV_TAKEOFF and DO_CHANGE_SPEED."""
GLOBAL, RELATIVE, MISSION = 0, 3, 2
"""MAVLink's frames: above the sea, above home, and of commands without a place."""


@dataclasses.dataclass(frozen=True)
class Flight:
    """What one drone flew, T + 1 places; latitudes and longitudes are those of WGS 84."""

    name: str
    seconds: np.ndarray  # [T + 1], since the start
    metres: np.ndarray  # [T + 1, 3], x, y and altitude above the ground
    degrees: np.ndarray | None  # [T + 1, 2], latitude, longitude; None where the city lies nowhere
    actions: list[str]  # T, what was executed
    speed: float  # m/s
    border: np.ndarray | None  # [4, 2], corners of the city, degrees
    zones: list[tuple[tuple[float, float], float, float]]  # latitude, longitude; radius, ceiling

    @property
    def places(self) -> np.ndarray:
        """The degrees of a flight over a city that lies somewhere."""
        assert self.degrees is not None
        return self.degrees

    def waypoints(self) -> list[tuple[np.ndarray, float, float]]:
        """Places (degrees), altitudes and seconds of hold, of which none equals the next."""
        found: list[tuple[np.ndarray, float, float]] = []
        held = 0
        step = self.seconds[1] - self.seconds[0] if len(self.seconds) > 1 else 0.0
        last = self.metres[0] + np.inf
        for place, degrees in zip(self.metres, self.places, strict=True):
            if np.linalg.norm(place - last) < STILL:
                held += 1
                found[-1] = (*found[-1][:2], held * step)
                continue
            held, last = 0, place
            found.append((degrees, float(place[2]), 0.0))
        return found

    def zones_kept_out(self) -> list[tuple[tuple[float, float], float, float]]:
        """The zones that the flight nowhere passes over: a fence has no ceiling."""
        kept = []
        for zone in self.zones:
            north_east = (self.places - zone[0]) * metres_per_degree(zone[0][0])
            if nearest(north_east) >= zone[1]:
                kept.append(zone)
        return kept


def nearest(path: np.ndarray) -> float:
    """The least distance from the origin to a path [T + 1, 2], its legs included."""
    start, leg = path[:-1], np.diff(path, axis=0)
    squared = np.maximum((leg**2).sum(axis=1), 1e-9)
    along = np.clip(-(start * leg).sum(axis=1) / squared, 0, 1)
    places = np.concatenate([path, start + along[:, None] * leg])
    return float(np.hypot(*places.T).min())


def flights_of(
    episode: Episode, config: EnvConfig, origin: tuple[float, float] | None
) -> list[Flight]:
    """The flights of a recorded episode, one for each drone.

    Args:
      episode: one episode, not a batch.
      config: of its world.
      origin: latitude and longitude of the city's north-western corner; None where it lies nowhere.
    """
    length = int(episode.length)
    positions = np.asarray(episode.positions, np.float64)[: length + 1]
    executed = np.asarray(episode.events.executed)[:length]
    width, south = config.city_width, config.city_length
    border, zones = None, []
    if origin is not None:
        border = to_degrees(np.array([(0, 0), (width, 0), (width, south), (0, south)]), origin)
        for x, y, radius, ceiling in np.asarray(episode.no_fly).tolist():
            if radius > 0:
                centre = to_degrees(np.array([x, y]), origin).tolist()
                zones.append((tuple(centre), radius, ceiling))
    return [
        Flight(
            name=f"drone-{drone + 1}",
            seconds=np.arange(length + 1) * config.step_seconds,
            metres=positions[:, drone],
            degrees=None if origin is None else to_degrees(positions[:, drone, :2], origin),
            actions=[ACTIONS[action] for action in executed[:, drone]],
            speed=config.cruise_speed,
            border=border,
            zones=zones,
        )
        for drone in range(positions.shape[1])
    ]


def mission_items(flight: Flight) -> list[tuple[int, int, list[float], tuple[float, float, float]]]:
    """MAVLink's mission: command, frame, four parameters, and latitude, longitude, altitude."""
    points = flight.waypoints()
    (start, altitude, _), nan = points[0], float("nan")
    items = [(TAKEOFF, RELATIVE, [0.0, 0.0, 0.0, nan], (*start, altitude))]
    items += [(SPEED, MISSION, [1.0, flight.speed, -1.0, 0.0], (0.0, 0.0, 0.0))]
    for place, height, hold in points:
        items.append((WAYPOINT, RELATIVE, [hold, 0.0, 0.0, nan], (*place, height)))
    return [*items, (RETURN, MISSION, [0.0] * 4, (0.0, 0.0, 0.0))]


def plan(flight: Flight) -> str:
    """QGroundControl's plan, version 1: the mission, and a fence of the city's border and zones.

    Altitudes are above home. A fence has no ceiling, so zones that the flight passes over are left
    out of it.
    """
    items = [
        {
            "type": "SimpleItem",
            "autoContinue": True,
            "command": command,
            "doJumpId": number,
            "frame": frame,
            "params": [None if value != value else value for value in (*parameters, *place)],
            **altitude_fields(command, place),
        }
        for number, (command, frame, parameters, place) in enumerate(mission_items(flight), 1)
    ]
    circles = [
        {"circle": {"center": list(c), "radius": radius}, "inclusion": False, "version": 1}
        for c, radius, _ in flight.zones_kept_out()
    ]
    assert flight.border is not None
    border = {"inclusion": True, "polygon": flight.border.tolist(), "version": 1}
    mission = {
        "version": 2,
        "firmwareType": 12,  # PX4
        "vehicleType": 2,  # quadrotor
        "cruiseSpeed": flight.speed,
        "hoverSpeed": flight.speed,
        "globalPlanAltitudeMode": 1,
        "plannedHomePosition": [*flight.places[0].tolist(), 0.0],
        "items": items,
    }
    whole = {
        "fileType": "Plan",
        "version": 1,
        "groundStation": "QGroundControl",
        "geoFence": {"version": 2, "circles": circles, "polygons": [border]},
        "rallyPoints": {"version": 2, "points": []},
        "mission": mission,
    }
    return json.dumps(whole, indent=2) + "\n"


def altitude_fields(command: int, place: Sequence[float]) -> dict[str, Any]:
    """What QGroundControl shows of an item's altitude, where it has one."""
    if command not in (TAKEOFF, WAYPOINT):
        return {}
    return {"Altitude": place[2], "AltitudeMode": 1, "AMSLAltAboveTerrain": None}


def waypoints(flight: Flight) -> str:
    """MAVLink's plain text, `QGC WPL 110`: home first, then the mission."""
    home = (WAYPOINT, GLOBAL, [0.0] * 4, (*flight.places[0], 0.0))
    lines = ["QGC WPL 110"]
    for number, item in enumerate([home, *mission_items(flight)]):
        command, frame, parameters, place = item
        numbers = [0.0 if value != value else value for value in parameters]
        fields = [number, int(number == 0), frame, command, *(f"{value:g}" for value in numbers)]
        fields += [f"{place[0]:.8f}", f"{place[1]:.8f}", f"{place[2]:.2f}", 1]
        lines.append("\t".join(map(str, fields)))
    return "\n".join(lines) + "\n"


def kml(flight: Flight) -> str:
    """KML with a track in time above the ground, and the zones up to their ceilings."""
    times = [BEGIN + timedelta(seconds=float(second)) for second in flight.seconds]
    whens = [f"<when>{t.isoformat(timespec='milliseconds')}Z</when>" for t in times]
    coords = [
        f"<gx:coord>{lon:.8f} {lat:.8f} {altitude:.2f}</gx:coord>"
        for (lat, lon), altitude in zip(flight.places, flight.metres[:, 2], strict=True)
    ]
    mode = "<altitudeMode>relativeToGround</altitudeMode>"
    marks = []
    for centre, radius, ceiling in flight.zones:
        ring = circle(centre, radius)
        places = " ".join(f"{lon:.8f},{lat:.8f},{ceiling:.1f}" for lat, lon in ring)
        marks.append(
            f"<Placemark><name>no-fly below {ceiling:.0f} m</name><Polygon><extrude>1</extrude>"
            f"{mode}<outerBoundaryIs><LinearRing><coordinates>{places}</coordinates></LinearRing>"
            "</outerBoundaryIs></Polygon></Placemark>"
        )
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<kml xmlns="http://www.opengis.net/kml/2.2" '
        'xmlns:gx="http://www.google.com/kml/ext/2.2"><Document>',
        f"<name>{escape(flight.name)}</name>",
        *marks,
        f"<Placemark><name>{escape(flight.name)}</name><gx:Track>{mode}",
        *whens,
        *coords,
        "</gx:Track></Placemark></Document></kml>",
    ]
    return "\n".join(lines) + "\n"


def circle(centre: tuple[float, float], radius: float) -> np.ndarray:
    """A closed ring [n + 1, 2] of latitude, longitude around a centre, radius in metres."""
    angles = np.linspace(0, 2 * np.pi, CORNERS + 1)
    return to_degrees(radius * np.stack([np.sin(angles), np.cos(angles)], axis=-1), centre)


def geojson(flight: Flight) -> str:
    """GeoJSON: the track (altitudes in metres above the ground), and zones as `--zones` reads."""
    line = [
        [round(lon, 8), round(lat, 8), round(altitude, 2)]
        for (lat, lon), altitude in zip(
            flight.places.tolist(), flight.metres[:, 2].tolist(), strict=True
        )
    ]
    track = {
        "type": "Feature",
        "properties": {
            "name": flight.name,
            "seconds": flight.seconds.round(3).tolist(),
            "altitude": "metres above the ground",
        },
        "geometry": {"type": "LineString", "coordinates": line},
    }
    zones = [
        {
            "type": "Feature",
            "properties": {"name": "no-fly zone", "radius": radius, "ceiling": ceiling},
            "geometry": {"type": "Point", "coordinates": [round(c, 8) for c in centre[::-1]]},
        }
        for centre, radius, ceiling in flight.zones
    ]
    return json.dumps({"type": "FeatureCollection", "features": [track, *zones]}) + "\n"


def table(flight: Flight) -> str:
    """CSV: seconds, x, y, altitude in metres, latitude and longitude if known, and the action that
    leads on from there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    known = flight.degrees is not None
    places = ["latitude", "longitude"] if known else []
    writer.writerow(["seconds", "x", "y", "altitude", *places, "action"])
    for index, (second, place) in enumerate(zip(flight.seconds, flight.metres, strict=True)):
        degrees = [f"{value:.8f}" for value in flight.places[index]] if known else []
        action = flight.actions[index] if index < len(flight.actions) else ""
        writer.writerow([f"{second:.3f}", *(f"{value:.2f}" for value in place), *degrees, action])
    return text.getvalue()


FORMATS: dict[str, tuple[str, Callable[[Flight], str]]] = {
    "plan": (".plan", plan),
    "waypoints": (".waypoints", waypoints),
    "kml": (".kml", kml),
    "geojson": (".geojson", geojson),
    "csv": (".csv", table),
}
"""Each format's file ending and writer."""


def export_flights(
    episode: Episode,
    config: EnvConfig,
    out: str | Path,
    format: str = "plan",
    origin: tuple[float, float] | None = None,
) -> list[Path]:
    """Writes one file for each drone of a recorded episode.

    Args:
      episode: of `jaxqmix.record`.
      config: of its world.
      out: the folder to write into.
      format: `plan`, `waypoints`, `kml`, `geojson` or `csv`.
      origin: latitude and longitude of the city's north-western corner; None takes it from the
        city file of the config, if that knows it.

    Returns:
      The files.

    Raises:
      ConfigError: on an unknown format, or where nobody knows where the city lies (`csv` then has
        metres alone).
    """
    require_origin(config, format, origin)
    origin = origin or origin_of(episode, config)
    ending, write = FORMATS[format]
    files = []
    Path(out).mkdir(parents=True, exist_ok=True)
    flown = {flight.name + ending: write(flight) for flight in flights_of(episode, config, origin)}
    for former in Path(out).glob(f"drone-[0-9]*{ending}"):
        if former.name not in flown and former.stem.removeprefix("drone-").isdigit():
            former.unlink()  # of another flight, with more drones
    for name, text in flown.items():
        file = Path(out) / name
        file.write_text(text, encoding="utf-8")
        files.append(file)
    return files


def require_origin(config: EnvConfig, format: str, origin: tuple[float, float] | None) -> None:
    """Raises `ConfigError` when flights cannot be written in a format, before they are flown."""
    require(format in FORMATS, "format", format, f"must be one of {', '.join(FORMATS)}")
    if origin is not None:
        within = abs(origin[0]) < 90 and abs(origin[1]) <= 180
        require(within, "origin", origin, "must be degrees of latitude and longitude")
        return
    known = config.city is not None and all(city.origin for city in load_maps(config.city))
    if not known and format != "csv":
        raise ConfigError(
            "origin is missing: this city does not tell where on Earth it lies; give --origin LAT "
            "LON of its north-western corner"
        )


def origin_of(episode: Episode, config: EnvConfig) -> tuple[float, float] | None:
    """Where the city of an episode lies; of a folder's cities, the one most like it."""
    if config.city is None:
        return None

    def difference(city: CityMap) -> int:
        return int((city.heights != np.asarray(episode.heights)).sum())

    return min(load_maps(config.city), key=difference).origin
