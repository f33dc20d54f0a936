"""A map file becomes a `CityMap`: which reader, where it lies, which grid, which zones."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.config import ConfigError, require
from jaxqmix.maps import cityjson, geojson, osm, raster
from jaxqmix.maps.buildings import WGS84, Building, MapError, Survey, rasterise
from jaxqmix.maps.citymap import CityMap, load_map, to_degrees, to_metres

ENDINGS = (".geojson", ".json", ".osm", ".xml", ".npy", ".npz", ".tif", ".tiff")
MOST_ZONES, MOST_CELLS = 16, 10_000
SAMPLE = Path(__file__).parent / "assets" / "sample.geojson"
SAMPLE_ZONES = SAMPLE.with_name("sample_zones.geojson")
"""A drawn city and its zones, to try."""


@dataclasses.dataclass(frozen=True)
class Area:
    """Which grid is laid over a map."""

    cell_size: float  # m
    center: tuple[float, float] | None = None  # degrees of latitude, longitude
    size: float | None = None  # side of the square around the center, m


@dataclasses.dataclass(frozen=True)
class Reading:
    """A city, and what to tell of it."""

    city: CityMap
    highest: float  # m, before it was cut at 255
    notes: list[str]


def read_city(
    path: str | Path,
    cell_size: float = 10.0,
    center: tuple[float, float] | None = None,
    size: float | None = None,
    default_height: float = 9.0,
    zones: str | Path | None = None,
) -> Reading:
    """Reads a map file.

    Args:
      path: GeoJSON (.geojson, .json), OpenStreetMap (.osm), CityJSON (.json), a GeoTIFF surface
        model (.tif), heights in metres as a NumPy array (.npy), or a city file (.npz).
      cell_size: side of a cell, metres, and the length of a drone's move.
      center: latitude and longitude of the middle of a square to cut out.
      size: its side, metres; the whole map without `center`.
      default_height: of buildings that tell none, metres.
      zones: GeoJSON of no-fly zones: polygons, or points with a `radius`; `ceiling` in metres.

    Raises:
      ConfigError: in one line, naming the file and the feature or the setting.
    """
    path = Path(path)
    for name, value in (("cell_size", cell_size), ("default_height", default_height)):
        require(math.isfinite(value) and value > 0, name, value, "must be metres above 0")
    require((center is None) == (size is None), "size", size, "give center and size, or neither")
    enough = size is None or (math.isfinite(size) and size >= 4 * cell_size)
    require(enough, "size", size, "must be at least 4 cells")
    ending = path.suffix.lower()
    require(ending in ENDINGS, "file", path, f"must end in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise MapError(path, "there is no such file")
    area = Area(cell_size, center, size)
    if ending == ".npz":
        require(center is None, "center", center, "a city file is taken whole")
        city = load_map(path, "file")
        reading = Reading(city, float(city.heights.max(initial=0)), [])
    elif ending == ".npy":
        with odd_file(path):
            reading = from_array(path, area)
    elif ending in (".tif", ".tiff"):
        with odd_file(path):
            reading = from_tiff(path, area)
    else:
        reading = from_survey(survey_of(path, default_height), path, area)
    if zones is not None:
        reading = add_zones(reading, Path(zones))
    return reading


def survey_of(path: Path, default_height: float) -> Survey:
    """The buildings of a vector file, whatever it is."""
    if path.suffix.lower() in (".osm", ".xml"):
        return osm.read_buildings(path, default_height)
    data = read_json(path)
    kind = cityjson if data.get("type") == "CityJSON" else geojson
    with odd_file(path):
        return kind.read_buildings(data, path, default_height)


@contextmanager
def odd_file(path: Path) -> Iterator[None]:
    """Raises `MapError` where the block finds a list in the place of an object, numbers that are
    none, and the like."""
    try:
        yield
    except ConfigError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise MapError(path, f"it is not as its format asks ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `MapError` with the place of the error."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MapError(path, str(error.strerror)) from None
    except (ValueError, RecursionError) as error:
        raise MapError(path, f"it is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise MapError(path, "it is neither GeoJSON nor CityJSON")
    return data


def from_survey(survey: Survey, path: Path, area: Area) -> Reading:
    """Lays the grid over buildings."""
    if not survey.buildings:
        raise MapError(path, "there is no building in it")
    buildings, degrees, notes = located(survey)
    points = np.concatenate([ring for b in buildings for p in b.polygons for ring in p])
    if not degrees:
        require(
            area.center is None,
            "center",
            area.center,
            f"{path} does not tell its latitude and longitude"
            + (f' without pyproj: pip install ".[maps]" ({survey.system})'
               if survey.system else ""),
        )  # fmt: skip
        origin = None
        corner = np.array([points[:, 0].min(), points[:, 1].max()])
        extent = np.ptp(points, axis=0)
        place = lambda ring: (ring - corner) * (1, -1)  # noqa: E731
    else:
        origin, extent = corner_of(points, area)
        place = lambda ring: to_metres(ring, origin)  # noqa: E731
    rows, columns = grid_of(extent, area.cell_size, path)
    placed = [Building([[place(r) for r in p] for p in b.polygons], b.height) for b in buildings]
    heights, highest = rasterise(placed, rows, columns, area.cell_size)
    if not heights.any():
        raise MapError(path, "there is no building within size of center")
    city = CityMap(heights, area.cell_size, np.zeros((0, 4), np.float32), origin, path.name)
    return Reading(city, highest, [*survey.notes, *notes])


def located(survey: Survey) -> tuple[list[Building], bool, list[str]]:
    """The buildings in degrees if that can be, whether they are, and notes."""
    if survey.system == WGS84:
        return survey.buildings, True, []
    if survey.system is None:
        return survey.buildings, False, ["the file tells no place on Earth"]
    convert = to_wgs84(survey.system)
    if convert is None:
        note = f'no latitude and longitude from {survey.system}: pip install ".[maps]"'
        return survey.buildings, False, [note]
    # One call for all points: each costs more than thousands of points.
    rings = [ring for b in survey.buildings for polygon in b.polygons for ring in polygon]
    degrees = convert(np.concatenate(rings))
    parts = iter(np.split(degrees, np.cumsum([len(ring) for ring in rings])[:-1]))
    buildings = [
        Building([[next(parts) for _ in polygon] for polygon in b.polygons], b.height)
        for b in survey.buildings
    ]
    return buildings, True, []


def to_wgs84(system: str) -> Any:
    """A function from easting, northing [n, 2] to latitude, longitude; None without pyproj.

    Raises:
      ConfigError: on a reference system that is not known.
    """
    try:
        from pyproj import Transformer
        from pyproj.exceptions import CRSError
    except ImportError:
        return None
    try:
        transformer = Transformer.from_crs(system, WGS84, always_xy=True)
    except CRSError:
        raise ConfigError(f"reference system = {system} is not known to pyproj") from None

    def convert(points: np.ndarray) -> np.ndarray:
        longitude, latitude = transformer.transform(points[:, 0], points[:, 1])
        degrees = np.stack([latitude, longitude], axis=-1)
        if not np.isfinite(degrees).all():
            raise ConfigError(f"reference system = {system} does not hold all places of the map")
        return degrees

    return convert


def corner_of(places: np.ndarray, area: Area) -> tuple[tuple[float, float], np.ndarray]:
    """The north-western corner (degrees) and the extent (metres) of a grid over places [n, 2]."""
    if area.center is not None:
        latitude, longitude = area.center
        within = abs(latitude) <= 90 and abs(longitude) <= 180
        require(within, "center", area.center, "must be degrees of latitude and longitude")
        assert area.size is not None
        half = area.size / 2
        north, west = to_degrees(np.array([-half, -half]), area.center).tolist()
        return (north, west), np.full(2, area.size)
    origin = (float(places[:, 0].max()), float(places[:, 1].min()))
    return origin, np.ptp(to_metres(places, origin), axis=0)


def grid_of(extent: np.ndarray, cell_size: float, path: Path) -> tuple[int, int]:
    """Rows and columns that hold an extent along x and y (m)."""
    columns, rows = (max(1, math.ceil(side / cell_size - 1e-6)) for side in extent)
    cells = f"{columns} x {rows} cells of {cell_size:g} m"
    if max(rows, columns) > MOST_CELLS:
        raise MapError(path, f"its {cells} are too many: give center and size, or larger cells")
    if min(rows, columns) < 4:
        raise MapError(path, f"its {cells} are fewer than 4 x 4: give smaller cells")
    return rows, columns


def from_array(path: Path, area: Area) -> Reading:
    """Every number of an array becomes a cell."""
    require(area.center is None, "center", area.center, "an array tells no latitude and longitude")
    heights = raster.read_array(path)
    rows, columns = grid_of(np.array(heights.shape[::-1]) * area.cell_size, area.cell_size, path)
    x, y = (np.arange(count) + 0.5 for count in (columns, rows))
    grid = raster.pool(heights, x, y[:, None], rows, columns, 1.0)
    city = CityMap(grid, area.cell_size, np.zeros((0, 4), np.float32), None, path.name)
    return Reading(city, float(heights.max()), ["the file tells no place on Earth"])


def from_tiff(path: Path, area: Area) -> Reading:
    """Lays the grid over a surface model."""
    image = raster.read_tiff(path)
    rows, columns = image.heights.shape
    corners = np.array([(0, 0), (columns, 0), (0, rows), (columns, rows)]) * image.pixel * (1, -1)
    corners = corners + image.corner
    convert = to_wgs84(image.system) if image.system not in (None, WGS84) else None
    notes = []
    if image.system == WGS84 or convert is not None:
        places = corners[:, ::-1] if convert is None else convert(corners)
        origin, extent = corner_of(places, area)
        metres = to_metres(places, origin)
    else:
        require(area.center is None, "center", area.center, 'needs pyproj: pip install ".[maps]"')
        origin, extent = None, np.abs(corners[3] - corners[0])
        metres = (corners - corners[0]) * (1, -1)
        notes.append("the file tells no latitude and longitude that can be read without pyproj")
    along_x, along_y = (metres[1] - metres[0]) / columns, (metres[2] - metres[0]) / rows
    pixel = (float(np.hypot(*along_x)), float(np.hypot(*along_y)))
    built = raster.above_ground(image.heights, raster.window_pixels(pixel))
    notes.append("the ground under buildings is taken from the lowest ground around them")
    built = raster.finer(built, pixel, area.cell_size)
    column = (np.arange(built.shape[1]) + 0.5) * columns / built.shape[1]
    row = (np.arange(built.shape[0])[:, None] + 0.5) * rows / built.shape[0]
    x, y = (metres[0][axis] + column * along_x[axis] + row * along_y[axis] for axis in (0, 1))
    shape = grid_of(extent, area.cell_size, path)
    heights = raster.pool(built, x, y, *shape, area.cell_size)
    if not heights.any():
        raise MapError(path, "there is no building in it, or none within size of center")
    inside = (x >= 0) & (x < extent[0]) & (y >= 0) & (y < extent[1])
    highest = float(built[np.broadcast_to(inside, built.shape)].max())
    city = CityMap(heights, area.cell_size, np.zeros((0, 4), np.float32), origin, path.name)
    return Reading(city, highest, notes)


def add_zones(reading: Reading, path: Path) -> Reading:
    """The city with the no-fly zones of a GeoJSON file, as far as they reach into it."""
    city = reading.city
    if city.origin is None:
        raise MapError(path, "zones need a map that tells its latitude and longitude")
    if not path.is_file():
        raise MapError(path, "there is no such file")
    cylinders, notes = [city.no_fly], list(reading.notes)
    with odd_file(path):
        told = list(geojson.read_zones(read_json(path), path))
    for name, points, margin, ceiling in told:
        (x, y), radius = smallest_circle(to_metres(points, city.origin))
        radius += margin
        nearest = np.clip((x, y), 0, city.size)
        if np.hypot(*(nearest - (x, y))) >= radius:
            notes.append(f"zone {name} lies outside the city and is left out")
            continue
        cylinders.append(np.array([[x, y, radius, ceiling]], np.float32))
    no_fly = np.concatenate(cylinders)
    if len(no_fly) > MOST_ZONES:
        raise MapError(path, f"{len(no_fly)} zones lie in the city: at most {MOST_ZONES} can be")
    return Reading(dataclasses.replace(city, no_fly=no_fly), reading.highest, notes)


def smallest_circle(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre [2] and radius of the smallest circle around points [n, 2].

    Welzl 1991, in its iterative form: a point outside lies on the border of the new circle.
    """
    points = np.unique(points, axis=0)
    points = np.random.default_rng(0).permutation(points)
    centre, radius = points[0], 0.0
    for i, p in enumerate(points):
        if outside(p, centre, radius):
            centre, radius = p, 0.0
            for j, q in enumerate(points[:i]):
                if outside(q, centre, radius):
                    centre, radius = (p + q) / 2, float(np.hypot(*(p - q))) / 2
                    for r in points[:j]:
                        if outside(r, centre, radius):
                            centre, radius = through(p, q, r)
    return centre, radius


def outside(point: np.ndarray, centre: np.ndarray, radius: float) -> bool:
    """Whether a point lies outside of a circle, but for rounding."""
    return float(np.hypot(*(point - centre))) > radius * (1 + 1e-9) + 1e-9


def through(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, float]:
    """The circle through three points that are not on one line."""
    a, b = q - p, r - p
    cross = 2 * (a[0] * b[1] - a[1] * b[0])
    across = np.array([b[1] * (a @ a) - a[1] * (b @ b), a[0] * (b @ b) - b[0] * (a @ a)]) / cross
    return p + across, float(np.hypot(*across))
