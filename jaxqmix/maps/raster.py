"""Height maps: NumPy arrays, and GeoTIFF surface models (read by Pillow)."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from jaxqmix.maps.buildings import TALLEST, MapError

PIXEL_SCALE, TIE_POINT, TRANSFORM, GEO_KEYS, NO_DATA = 33550, 33922, 34264, 34735, 42113
"""Tags of GeoTIFF (OGC 19-008r4), and GDAL's for the value of missing pixels."""
RASTER_TYPE, POINTS = 1025, 2
"""The key that says whether a tie point is a pixel's corner, or its middle."""
MODEL_KEYS = (3072, 2048)
"""Keys of the projected and of the geographic coordinate reference system."""
MODEL_TYPE, PROJECTED = 1024, 1
"""The key that says whether places are easting and northing, or degrees."""
LOWEST_ROOF = 2.0
"""What stands lower above the ground, metres, is none of our buildings: cars, hedges, errors."""
GROUND_WINDOW = 250.0
"""The ground under buildings is read from open ground within about half of this, metres."""


@dataclasses.dataclass(frozen=True)
class Raster:
    """A grid of heights; pixel (0, 0) begins at `corner`, rows go to the south."""

    heights: np.ndarray  # [rows, columns] float32, m; NaN where nothing is known
    pixel: tuple[float, float]  # extent of a pixel along x and y, in units of `system`
    corner: tuple[float, float]  # easting and northing, or longitude and latitude
    system: str | None


def read_array(path: Path) -> np.ndarray:
    """A .npy file's heights above the ground [rows, columns] in metres."""
    try:
        heights = np.load(path, allow_pickle=False)
    except Exception:  # numpy raises many kinds
        raise MapError(path, "it is no array of NumPy") from None
    if heights.ndim != 2 or heights.dtype.kind not in "fiub":
        shape = f"{heights.dtype} {list(heights.shape)}"
        raise MapError(path, f"it must hold numbers [rows, columns], not {shape}")
    if not np.isfinite(heights).all() or (heights < 0).any():
        row, column = np.argwhere(~(np.isfinite(heights) & (heights >= 0)))[0]
        value = heights[row, column]
        raise MapError(path, f"row {row}, column {column}: {value} must be metres, 0 or more")
    return heights.astype(np.float32)


def read_tiff(path: Path) -> Raster:
    """A GeoTIFF of one band.

    Raises:
      MapError: when it is no such file, or does not tell where it lies.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            tags = dict(image.tag_v2)  # type: ignore[attr-defined]  # of TIFF files alone
            heights = np.asarray(image, np.float32)
    except Exception as error:  # Pillow raises many kinds
        raise MapError(path, f"it cannot be read as TIFF: {error}") from None
    if heights.ndim != 2:
        raise MapError(path, f"it must have one band of heights, not {heights.shape[-1]}")
    missing = str(tags.get(NO_DATA, "")).strip("\x00 ")
    if missing:
        heights = np.where(heights == np.float32(missing), np.nan, heights)
    heights = np.where(np.abs(heights) > 20_000, np.nan, heights)
    if not np.isfinite(heights).any():
        raise MapError(path, "it has no pixel with a height")
    if PIXEL_SCALE in tags and TIE_POINT in tags:
        (width, height), tie = tags[PIXEL_SCALE][:2], tags[TIE_POINT]
        corner = (tie[3] - tie[0] * width, tie[4] + tie[1] * height)
    elif TRANSFORM in tags and tags[TRANSFORM][1] == tags[TRANSFORM][4] == 0:
        matrix = tags[TRANSFORM]
        (width, height), corner = (matrix[0], -matrix[5]), (matrix[3], matrix[7])
    else:
        raise MapError(path, "it does not tell where it lies, or is turned")
    if width <= 0 or height <= 0:
        raise MapError(path, "its pixels must have a size, and its first row be the north")
    if of_geo_keys(tags.get(GEO_KEYS, ())).get(RASTER_TYPE) == POINTS:
        corner = (corner[0] - width / 2, corner[1] + height / 2)
    return Raster(heights, (width, height), corner, system_of(tags.get(GEO_KEYS, ())))


def of_geo_keys(keys: tuple[int, ...]) -> dict[int, int]:
    """The numbers that a GeoTIFF's key directory holds itself."""
    return {keys[i]: keys[i + 3] for i in range(4, len(keys) - 3, 4) if keys[i + 1] == 0}


def finer(heights: np.ndarray, pixel: tuple[float, float], cell_size: float) -> np.ndarray:
    """The same picture [h, w] with pixels so small that every cell holds the middle of one, turned
    or not.

    Args:
      heights: [h, w].
      pixel: width and height, metres.
      cell_size: metres.
    """
    across, down = (max(1, math.ceil(1.5 * side / cell_size)) for side in pixel)
    return heights.repeat(down, axis=0).repeat(across, axis=1)


def system_of(keys: tuple[int, ...]) -> str | None:
    """Such as `EPSG:28992`, from a GeoTIFF's keys."""
    entries = of_geo_keys(keys)
    if entries.get(MODEL_TYPE) == PROJECTED:
        entries.pop(MODEL_KEYS[1], None)  # of the system below a projection of one's own
    found = [entries[key] for key in MODEL_KEYS if 0 < entries.get(key, 0) < 32767]
    return f"EPSG:{found[0]}" if found else None


def above_ground(surface: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Heights above the ground of a surface model [rows, columns], metres.

    The ground is what a window [rows, columns], wider than any building, has lowest: a
    morphological opening (Zhang et al. 2003, "A progressive morphological filter"). Missing pixels
    are open ground.
    """
    from scipy.ndimage import grey_opening

    known = np.isfinite(surface)
    filled = np.where(known, surface, np.float32(surface[known].max()))
    ground = grey_opening(filled, size=tuple(max(3, side) for side in window))
    height = np.where(known, surface - ground, 0.0)
    return np.where(height < LOWEST_ROOF, 0.0, height)


def pool(
    heights: np.ndarray, x: np.ndarray, y: np.ndarray, rows: int, columns: int, cell_size: float
) -> np.ndarray:
    """The highest pixel in each cell: uint8 [rows, columns], rounded up.

    Args:
      heights: [h, w], metres above the ground.
      x: [h, w] or [w], where the pixels' middles lie, metres.
      y: [h, w] or [h, 1], likewise.
      rows: of the grid.
      columns: of the grid.
      cell_size: metres.
    """
    row = np.broadcast_to(np.floor(y / cell_size).astype(int), heights.shape)
    column = np.broadcast_to(np.floor(x / cell_size).astype(int), heights.shape)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    grid = np.zeros((rows, columns), np.float32)
    np.maximum.at(grid, (row[inside], column[inside]), heights[inside])
    return np.minimum(np.ceil(grid - 1e-4), TALLEST).clip(0).astype(np.uint8)


def window_pixels(pixel_metres: tuple[float, float]) -> tuple[int, int]:
    """Rows and columns of `GROUND_WINDOW`."""
    width, height = pixel_metres
    return math.ceil(GROUND_WINDOW / height), math.ceil(GROUND_WINDOW / width)
