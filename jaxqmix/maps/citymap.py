"""A city as a file: building heights on a grid, no-fly cylinders and where on Earth it lies."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxqmix.config import ConfigError, EnvConfig, RunConfig, refuse, require
from jaxqmix.types import City

TALLEST = 255
"""Heights are stored as whole metres in one byte."""
SEMI_MAJOR, ECCENTRICITY_2 = 6378137.0, 6.69437999014e-3
"""The ellipsoid of WGS 84: metres, and the square of its eccentricity."""
Config = TypeVar("Config", RunConfig, EnvConfig)


@dataclasses.dataclass(frozen=True, eq=False)
class CityMap:
    """A literal city. North is up: x grows to the east, y and the rows to the south."""

    heights: np.ndarray  # [H, W] uint8, building height, whole metres; 0 is open ground
    cell_size: float  # m
    no_fly: np.ndarray = dataclasses.field(  # [K, 4] float32, cylinder: x, y, radius, ceiling, m
        default_factory=lambda: np.zeros((0, 4), np.float32)
    )
    origin: tuple[float, float] | None = None  # degrees of latitude, longitude where x = y = 0
    source: str = ""  # where it was read from

    @property
    def size(self) -> tuple[float, float]:
        """Extent along x and y, metres."""
        rows, columns = self.heights.shape
        return columns * self.cell_size, rows * self.cell_size

    def save(self, path: Path) -> None:
        """Writes a city file (.npz)."""
        origin = (math.nan, math.nan) if self.origin is None else self.origin
        # To an open file, for numpy adds `.npz` to a name that does not end so.
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                heights=self.heights,
                cell_size=np.float64(self.cell_size),
                no_fly=self.no_fly,
                origin=np.array(origin, np.float64),
                source=np.str_(self.source),
            )


def load_map(path: Path, setting: str = "city") -> CityMap:
    """Reads a city file; raises `ConfigError` naming `setting` when it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("heights", "cell_size", "no_fly", "origin")}
            source = str(file["source"]) if "source" in file else ""
        city = CityMap(
            heights=arrays["heights"],
            cell_size=float(arrays["cell_size"]),
            no_fly=arrays["no_fly"].astype(np.float32),
            source=source,
        )
        origin = tuple(arrays["origin"].tolist())
    except FileNotFoundError:
        words = "there is no such file; give the city's new place with --city"
        refuse(setting, path.as_posix(), words)
    except Exception:  # numpy and zipfile raise many kinds on a file that is no archive of arrays
        words = "it is no city file; `jaxqmix city FILE --out CITY.npz` makes one"
        refuse(setting, path.as_posix(), words)
    check_map(city, path.as_posix(), setting)
    if len(origin) != 2:
        refuse(setting, path.as_posix(), "its origin must be a latitude and a longitude")
    known = all(map(math.isfinite, origin))
    return dataclasses.replace(city, origin=origin if known else None)


def check_map(city: CityMap, name: str, setting: str = "city") -> None:
    """Raises `ConfigError` when a city's arrays are none that can be flown over."""
    refuse_city = functools.partial(refuse, setting, name)
    heights, no_fly = np.asarray(city.heights), np.asarray(city.no_fly)
    if heights.ndim != 2 or heights.dtype != np.uint8:
        words = f"{heights.dtype} {list(heights.shape)}"
        refuse_city(f"its heights must be uint8 [rows, columns], whole metres, not {words}")
    if no_fly.ndim != 2 or no_fly.shape[1] != 4 or not np.isfinite(no_fly).all():
        refuse_city("its no_fly must be finite numbers [zones, 4]: x, y, radius, ceiling")
    if (no_fly[:, 2:] < 0).any():
        refuse_city("radius and ceiling of its no_fly must be at least 0")
    if not (math.isfinite(city.cell_size) and city.cell_size > 0):
        refuse_city("its cell_size must be a number of metres greater than 0")


def check_starts(city: CityMap, config: EnvConfig) -> None:
    """Raises `ConfigError` when no-fly zones leave too few places to start from."""
    spacing, (rows, columns) = config.start_spacing, config.start_pads
    y = (np.arange(rows) * spacing + spacing // 2 + 0.5)[:, None] * config.cell_size
    x = (np.arange(columns) * spacing + spacing // 2 + 0.5)[None, :] * config.cell_size
    free = np.ones((rows, columns), bool)
    for zone in city.no_fly:
        free &= np.hypot(x - zone[0], y - zone[1]) > zone[2]
    words = f"its no-fly zones leave {free.sum()} places to start, and there are {config.drones}"
    require(bool(free.sum() >= config.drones), "city", city.source or "given", f"{words} drones")


def load_maps(path: str | Path, setting: str = "city") -> list[CityMap]:
    """The city of a file, or the cities of a folder by name, all of one size.

    Raises:
      ConfigError: when there is none, or they differ in rows, columns or cell size.
    """
    path = Path(path)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    require(bool(files), setting, path.as_posix(), "the folder holds no city file (.npz)")
    maps = [load_map(file, setting) for file in files]
    for file, other in zip(files, maps, strict=True):
        same = (other.heights.shape, other.cell_size) == (maps[0].heights.shape, maps[0].cell_size)
        require(
            same,
            setting,
            path.as_posix(),
            f"cities of one folder must be of one size, and {file.name} is {describe_size(other)} "
            f"where {files[0].name} is {describe_size(maps[0])}",
        )
    return maps


def describe_size(city: CityMap) -> str:
    """Such as `1000 x 800 m of 20 m cells`."""
    width, length = city.size
    return f"{width:g} x {length:g} m of {city.cell_size:g} m cells"


def checksum(maps: list[CityMap]) -> str:
    """16 hexadecimal digits that tell whether what is flown over is the same."""
    digest = hashlib.sha256()
    for city in maps:
        digest.update(repr((city.heights.shape, city.cell_size, city.no_fly.shape)).encode())
        digest.update(np.ascontiguousarray(city.heights).tobytes())
        digest.update(np.ascontiguousarray(city.no_fly, dtype="<f4").tobytes())
    return digest.hexdigest()[:16]


def with_city(config: Config, city: str | Path | CityMap | None) -> Config:
    """The config for flights over a city: size, cells and zones are the city's.

    Args:
      config: of a run, or of an environment alone.
      city: a city file, a folder of them of which each episode draws one, or a `CityMap`; the
        config as it is when None.

    Raises:
      ConfigError: when it cannot be read, or cannot be flown over.
    """
    if city is None:
        return config
    if isinstance(config, RunConfig):
        return dataclasses.replace(config, env=with_city(config.env, city))
    if isinstance(city, CityMap):
        maps, path, name = [city], None, city.source
    else:
        require(isinstance(city, str | Path), "city", repr(city), "must be a file or a CityMap")
        maps, path = load_maps(city), Path(city).resolve().as_posix()
        name = Path(city).as_posix()
    check_map(maps[0], maps[0].source or "given")
    width, length = maps[0].size
    try:
        return dataclasses.replace(
            config,
            city=path,
            city_checksum=checksum(maps),
            city_width=width,
            city_length=length,
            cell_size=maps[0].cell_size,
            no_fly_zones=max(len(one.no_fly) for one in maps),
        )
    except ConfigError as error:
        raise ConfigError(f"city = {name} is not allowed with these settings: {error}") from None


def without_city(config: RunConfig) -> RunConfig:
    """The config for generated cities of the same size: it needs no file."""
    env = dataclasses.replace(config.env, city=None, city_checksum=None)
    return dataclasses.replace(config, env=env)


def load_cities(config: EnvConfig) -> City:
    """The cities of `config.city`, stacked: heights [C, H, W], no_fly [C, K, 4], coverable [C] 0.

    Raises:
      ConfigError: when they are gone, differ from the config's checksum, or do not fit its sizes.
    """
    assert config.city is not None
    maps = load_maps(config.city, "env.city")
    found = checksum(maps)
    require(
        config.city_checksum in (None, found),
        "env.city",
        config.city,
        f"it differs from the city of these settings (checksum {found}, and not "
        f"{config.city_checksum})",
    )
    return stack(maps, config)


def stack(maps: list[CityMap], config: EnvConfig) -> City:
    """Cities of one size, stacked; zones are filled up with some of radius 0.

    Raises:
      ConfigError: when the config's sizes are not theirs.
    """
    for city in maps:
        check_map(city, city.source or "given")
    zones = max(len(city.no_fly) for city in maps)
    sizes = dict(zip(("city_width", "city_length"), maps[0].size, strict=True))
    sizes |= {"cell_size": maps[0].cell_size, "no_fly_zones": zones}
    for name, size in sizes.items():
        value = getattr(config, name)
        require(
            abs(value - size) < 1e-6, f"env.{name}", value, f"the city has {size:g}: leave it out"
        )
    for city in maps:
        check_starts(city, config)
    no_fly = np.zeros((len(maps), zones, 4), np.float32)
    for index, city in enumerate(maps):
        no_fly[index, : len(city.no_fly)] = city.no_fly
    heights = np.stack([city.heights for city in maps])
    # In NumPy: programs take them as constants.
    arrays: tuple[Any, ...] = (heights, no_fly, np.zeros(len(maps), np.int32))
    return City(*arrays)


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Length of a degree of latitude and of longitude on the ellipsoid of WGS 84, metres."""
    sine = math.sin(math.radians(latitude))
    curved = 1 - ECCENTRICITY_2 * sine**2
    north = SEMI_MAJOR * (1 - ECCENTRICITY_2) / curved**1.5
    east = SEMI_MAJOR / math.sqrt(curved) * math.cos(math.radians(latitude))
    return math.radians(north), math.radians(east)


def to_metres(places: np.ndarray, origin: tuple[float, float]) -> np.ndarray:
    """x and y in metres [..., 2] of places [..., 2] (degrees of latitude, longitude).

    Equirectangular around the origin: at 5 km, off by some metres in the far corners.
    """
    north, east = metres_per_degree(origin[0])
    places = np.asarray(places, np.float64)
    return np.stack(
        [(places[..., 1] - origin[1]) * east, (origin[0] - places[..., 0]) * north], axis=-1
    )


def to_degrees(metres: np.ndarray, origin: tuple[float, float]) -> np.ndarray:
    """The inverse of `to_metres`: latitude, longitude [..., 2] of x, y [..., 2]."""
    north, east = metres_per_degree(origin[0])
    metres = np.asarray(metres, np.float64)
    return np.stack(
        [origin[0] - metres[..., 1] / north, origin[1] + metres[..., 0] / east], axis=-1
    )
