"""Commands between this world and others: `jaxqmix city`, `export` and `fly`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from jaxqmix.cli import check_file, optional, parse, single, write
from jaxqmix.config import ConfigError


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

    zones = given.zones
    if name == "sample" and not Path(name).exists():
        name, zones = SAMPLE, zones or SAMPLE_ZONES
    reading = read_city(
        name, given.cell_size, given.center, given.size, given.default_height, zones
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
