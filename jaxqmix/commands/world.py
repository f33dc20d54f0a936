"""Commands between this world and others: `jaxqmix city`, `export` and `fly`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from jaxqmix.commands.common import (
    PLACE,
    check_file,
    optional,
    parse,
    prepare_jax,
    single,
    write,
)
from jaxqmix.commands.evaluate import PLANNER, Planner, find_policy
from jaxqmix.config import ConfigError, require
from jaxqmix.metrics import check_writable


@dataclasses.dataclass(frozen=True)
class City:
    """Make a city file of a map: GeoJSON, OpenStreetMap (.osm), CityJSON, GeoTIFF or NumPy.

    A picture of it is left beside the file. Fly over it with --city FILE. `sample` in place of the
    map is a small drawn one, with zones, that comes with the package.
    """

    out: Path
    """The city file, .npz."""
    cell_size: float = 10.0
    """Side of a cell, metres; also the length of one horizontal move."""
    center: Annotated[tuple[float, float] | None, optional("LAT LON", "the whole map")] = None
    """Middle of a square to cut out, degrees."""
    size: Annotated[float | None, optional("METRES", "the whole map")] = None
    """Side of that square."""
    default_height: float = 9.0
    """Height of buildings that tell none, metres."""
    zones: Annotated[Path | None, optional("FILE.geojson", "none")] = None
    """No-fly zones: polygons, or points with a `radius`; with a `ceiling` in metres, else 500."""


def city_command(arguments: list[str]) -> int:
    """`jaxqmix city FILE --out CITY.npz`."""
    given, names = parse(City, arguments, "jaxqmix city FILE")
    name = single(names, "file")
    if name is None:
        raise ConfigError("file is missing: give a map, such as city.geojson, or sample")
    check_file("out", given.out, (".npz",))
    from jaxqmix.maps.picture import draw_city
    from jaxqmix.maps.reading import SAMPLE, SAMPLE_ZONES, read_city

    path, zones = Path(name), given.zones
    if name == "sample" and not Path(name).exists():
        path, zones = SAMPLE, zones or SAMPLE_ZONES
    reading = read_city(
        path, given.cell_size, given.center, given.size, given.default_height, zones
    )
    for line in describe(reading):
        print(line)
    write(given.out, reading.city.save)
    write(given.out.with_suffix(".png"), lambda path: draw_city(reading.city, path))
    return 0


def describe(reading) -> list[str]:
    """What a person wants to know of a city, a line each."""
    from jaxqmix.maps.buildings import TALLEST
    from jaxqmix.maps.citymap import describe_size

    city = reading.city
    rows, columns = city.heights.shape
    built = (city.heights > 0).mean()
    lines = [
        f"{city.source}: {describe_size(city)}, {columns} x {rows} cells",
        f"built {built:.1%} of the cells, highest roof {reading.highest:.1f} m"
        + (f" (kept as {TALLEST} m)" if reading.highest > TALLEST else ""),
    ]
    if city.origin is not None:
        lines.append(
            "north-western corner at latitude {:.6f}, longitude {:.6f}".format(*city.origin)
        )
    for x, y, radius, ceiling in city.no_fly.tolist():
        lines.append(
            f"no-fly zone at x {x:.0f}, y {y:.0f} m: radius {radius:.0f}, below {ceiling:.0f} m"
        )
    return [*lines, *(f"note: {note}" for note in reading.notes)]


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a trained policy for machines without JAX.

    It takes what one drone observes and gives its action; the file names every number.
    """

    out: Path
    """The file: .onnx, .npz (NumPy) or .stablehlo, which JAX of the same age or newer reads."""
    format: Annotated[
        Literal["onnx", "npz", "stablehlo"] | None,
        optional("{onnx,npz,stablehlo}", "by the ending of --out"),
    ] = None
    """Which of them."""
    one_view: bool = False
    """Without the symmetry ensemble: an eighth of the work, and slower flights."""


@dataclasses.dataclass(frozen=True)
class Fly:
    """Fly once, and write what each drone flew for a ground station or a map.

    A policy reacts in flight, and these files do not: each is one flight of the simulator.
    """

    out: Annotated[Path | None, optional("FOLDER", "flights")] = None
    """The folder to write into, one file for each drone; those of a former flight are replaced."""
    format: Literal["plan", "waypoints", "kml", "geojson", "csv"] = "plan"
    """plan: QGroundControl, with a fence; waypoints: MAVLink's text, QGC WPL 110; kml: a track in
    time; geojson; csv."""
    city: Annotated[Path | None, optional(PLACE, "as trained")] = None
    """Fly over this city file instead."""
    origin: Annotated[tuple[float, float] | None, optional("LAT LON", "the city's")] = None
    """Latitude and longitude of the city's north-western corner."""
    drones: Annotated[int | None, optional("INT", "as trained")] = None
    """Fly with so many drones instead."""
    seed: int = 0
    """Which starts, wind and weather."""
    planner: Annotated[Planner | None, optional(PLANNER, "the trained policy")] = None
    """Fly a scripted planner instead of the trained policy."""


def export_command(arguments: list[str]) -> int:
    """`jaxqmix export RUN --out FILE`."""
    given, names = parse(Export, arguments, "jaxqmix export RUN")
    name = single(names, "run")
    if name is None:
        raise ConfigError("run is missing: give a run's folder or a checkpoint")
    check_file("out", given.out)
    prepare_jax()
    from jaxqmix.export.policy import export_policy

    views = False if given.one_view else None
    difference = export_policy(name, given.out, given.format, views)
    print(f"wrote {given.out}")
    print(f"its values are JAX's but for {difference:.0e} of the largest, on random observations")
    return 0


def fly_command(arguments: list[str]) -> int:
    """`jaxqmix fly RUN --city CITY.npz`."""
    given, names = parse(Fly, arguments, "jaxqmix fly RUN", Fly())
    out = given.out or Path("flights")
    require(not out.is_file(), "out", out, "it is a file, and must be a folder")
    check_writable("out", out)
    loaded = find_policy(single(names, "run"), given.planner, given.drones, given.city)
    from jaxqmix import api
    from jaxqmix.export.flights import export_flights, require_origin

    require_origin(loaded.config.env, given.format, given.origin)
    episode = api.record(loaded, seed=given.seed)
    files = export_flights(episode, loaded.config.env, out, given.format, given.origin)
    length = int(episode.length)
    print(
        f"flown: {length} steps, {length * loaded.config.env.step_seconds:.0f} s, "
        f"coverage {float(episode.coverage[-1]):.1%}"
    )
    print(f"wrote {files[0]}" + (f" to {files[-1].name}" if len(files) > 1 else ""))
    return 0
