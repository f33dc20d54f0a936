"""What the swarm has not seen yet, and how a look changes it.

The map of unseen cells is one bit per cell, 32 columns to a word, so a footprint is one run of
bits per row. Two properties make a step's cost independent of the city's area: a look reads and
writes only the words under its footprint, and the counts of unseen cells in coarse blocks are kept
up to date by the newly seen bits of that look.

The bit map carries a margin of zeros (cells outside the city count as seen), and so do the coarse
counts: every window around a drone lies inside its array and needs no clamping.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxqmix.compilation import materialise
from jaxqmix.config import EnvConfig, require
from jaxqmix.env.city import footprint_radius
from jaxqmix.types import Unseen

WORD = 32
FIRST_COARSE = 16
"""Side of the finest kept block, in cells; each further level is four times coarser."""
COARSE_FACTOR = 4
FINE_WINDOW = 32
"""Side in cells of the window that fine views read straight from the bit map."""
FINE_SIDE = 9
"""Blocks along the side of a fine view: odd, so that the drone's own cell is its middle."""
VIEW_SIDE = 8
"""Blocks along the side of a coarse view."""


def footprint_cells(config: EnvConfig) -> int:
    """Cells from a drone's own to the furthest it can see."""
    return math.ceil(config.max_footprint / config.cell_size)


def window_cells(config: EnvConfig) -> int:
    """Cells from a drone's own to the edge of a look's window: one more than it can see, so that
    every side of a seen cell lies inside."""
    return footprint_cells(config) + 1


def margins(config: EnvConfig) -> tuple[int, int]:
    """Rows and words of zeros on each side of the bit map."""
    reach = max(FINE_WINDOW // 2, window_cells(config))
    return reach, -(-reach // WORD)


def coarse_blocks(config: EnvConfig) -> tuple[int, ...]:
    """Sides in cells of the coarse blocks; the last view reaches across the whole city."""
    blocks = [FIRST_COARSE]
    while blocks[-1] * VIEW_SIDE // 2 < max(config.rows, config.columns):
        blocks.append(blocks[-1] * COARSE_FACTOR)
    return tuple(blocks)


def view_side(block: int, config: EnvConfig) -> int:
    """Blocks along the side of the view of this block size; the last may need fewer."""
    reach = math.ceil(max(config.rows, config.columns) / block)
    return min(VIEW_SIDE, max(2, 2 * reach))


def coarse_margin(block: int, config: EnvConfig) -> int:
    """Blocks of zeros on each side of a coarse map."""
    spill = -(-(window_cells(config) + 2 * WORD) // block) + 1
    return max(view_side(block, config) // 2, spill)


def pack_unseen(cells: jax.Array, config: EnvConfig) -> Unseen:
    """Packs unseen coverable cells [H, W] (bool) into an `Unseen`."""
    row_margin, word_margin = margins(config)
    words = -(-config.columns // WORD)
    spill = words * WORD - config.columns
    bits = jnp.pad(cells, ((0, 0), (0, spill))).reshape(config.rows, words, WORD)
    weights = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
    packed = jnp.sum(jnp.where(bits, weights, jnp.uint32(0)), axis=-1, dtype=jnp.uint32)
    # One word more on the right: a window is a whole number of words.
    packed = jnp.pad(packed, ((row_margin, row_margin), (word_margin, word_margin + 1)))
    coarse = []
    counts, block = cells.astype(jnp.int32), 1
    for next_block in coarse_blocks(config):
        counts = _sum_blocks(counts, next_block // block)
        block = next_block
        coarse.append(jnp.pad(counts, coarse_margin(block, config)))
    return Unseen(packed, tuple(coarse))


def _sum_blocks(counts: jax.Array, factor: int) -> jax.Array:
    rows, columns = (-(-size // factor) for size in counts.shape)
    spill = (rows * factor - counts.shape[0], columns * factor - counts.shape[1])
    padded = jnp.pad(counts, ((0, spill[0]), (0, spill[1])))
    return padded.reshape(rows, factor, columns, factor).sum(axis=(1, 3))


def unpack_unseen(unseen: Unseen, config: EnvConfig) -> jax.Array:
    """Unseen coverable cells [H, W], bool; leading axes of `unseen` are kept."""
    row_margin, word_margin = margins(config)
    words = unseen.words[..., row_margin : row_margin + config.rows, word_margin:]
    bits = (words[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
    bits = bits.reshape(*words.shape[:-1], -1)
    return bits[..., : config.columns].astype(bool)


def _low_bits(count: jax.Array) -> jax.Array:
    """A word with the `count` lowest bits set, `count` clipped to 0 .. 32."""
    count = jnp.clip(count, 0, WORD).astype(jnp.uint32)
    # A shift by 32 is undefined, hence two shifts.
    half = count // 2
    return ~((jnp.uint32(0xFFFFFFFF) << half) << (count - half))


def _window_start(cell: jax.Array, reach: int, config: EnvConfig) -> tuple[jax.Array, jax.Array]:
    """First row and word of the bit-map window that reaches `reach` cells around a cell."""
    row_margin, word_margin = margins(config)
    return cell[0] - reach + row_margin, (cell[1] - reach) // WORD + word_margin


def footprint_mask(
    position: jax.Array, radius: jax.Array, start: tuple[jax.Array, jax.Array], config: EnvConfig
) -> jax.Array:
    """Bits [rows, words] of the cells whose centre lies within `radius` m of a drone."""
    row_margin, word_margin = margins(config)
    corner = (start[0] - row_margin, (start[1] - word_margin) * WORD)
    return disc_mask(position, radius, corner, _window_shape(config), config)


def disc_mask(
    position: jax.Array,
    radius: jax.Array,
    corner: tuple[jax.Array, jax.Array],
    shape: tuple[int, int],
    config: EnvConfig,
) -> jax.Array:
    """Bits [rows, words] of the cells whose centre lies within `radius` m of a position.

    In each row they are one run, from the first to the last centre inside the circle.

    Args:
      position: [2 or 3], x and y in metres.
      radius: [], metres.
      corner: row and column of the first cell.
      shape: rows and words of the window.
      config: static sizes.
    """
    rows, words = shape
    row_centres = (corner[0] + jnp.arange(rows) + 0.5) * config.cell_size
    squared = radius**2 - (row_centres - position[1]) ** 2
    half = jnp.sqrt(jnp.maximum(squared, 0.0))
    first = jnp.ceil((position[0] - half) / config.cell_size - 0.5).astype(jnp.int32) - corner[1]
    last = jnp.floor((position[0] + half) / config.cell_size - 0.5).astype(jnp.int32) - corner[1]
    last = jnp.where(squared >= 0, last, first - 1)
    offsets = jnp.arange(words) * WORD
    return _low_bits(last[:, None] + 1 - offsets) & ~_low_bits(first[:, None] - offsets)


def _window_shape(config: EnvConfig) -> tuple[int, int]:
    reach = window_cells(config)
    return 2 * reach + 1, (2 * reach + 2 * WORD - 1) // WORD


def chance_mask(
    key: jax.Array,
    position: jax.Array,
    radius: jax.Array,
    visibility: jax.Array,
    start: tuple[jax.Array, jax.Array],
    config: EnvConfig,
) -> jax.Array:
    """Bits [rows, words] of cells that one look sees by chance.

    A cell at distance d is seen with probability visibility x (1 - d / radius), to 16 bits.

    Args:
      key: consumed once.
      position: [3], metres.
      radius: [], metres.
      visibility: [], 0 to 1.
      start: first row and word of the bit-map window, from the drone's cell.
      config: static sizes.
    """
    side = 2 * footprint_cells(config) + 1
    first = jnp.floor(position[1::-1] / config.cell_size) - window_cells(config)
    y, x = (first[:, None] + jnp.arange(1, side + 1) + 0.5) * config.cell_size
    squared = (y[:, None] - position[1]) ** 2 + (x[None, :] - position[0]) ** 2
    # Random numbers are the cost of this look: one word for two cells, none for the window's rest.
    # The numbers of one look are never spread over devices; so drawn, they cost half as much.
    with jax.threefry_partitionable(False):
        draw = materialise(jax.random.bits(key, (side, -(-side // 2)), jnp.uint32))
    draw = jnp.concatenate([draw & 0xFFFF, draw >> 16], axis=-1)[:, :side] / jnp.float32(2**16)
    # draw < visibility x (1 - distance / radius), without the root.
    within = jnp.maximum(visibility - draw, 0.0) * radius
    seen = materialise(within**2 > visibility**2 * squared)
    bits = jnp.pad(seen, ((1, 1), (1, -(side + 1) % WORD))).reshape(side + 2, -1, WORD)
    weights = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
    packed = jnp.sum(jnp.where(bits, weights, jnp.uint32(0)), axis=-1, dtype=jnp.uint32)
    packed = materialise(packed)
    words = _window_shape(config)[1]
    packed = jnp.pad(packed, ((0, 0), (1, words - packed.shape[1])))
    shift = (first[1].astype(jnp.int32) % WORD).astype(jnp.uint32)
    # A shift by 32 is undefined, hence two shifts on the right.
    return (packed[:, 1:] << shift) | ((packed[:, :-1] >> 1) >> (WORD - 1 - shift))


def look(
    key: jax.Array | None,
    unseen: Unseen,
    position: jax.Array,
    visibility: jax.Array,
    config: EnvConfig,
    sensor: Sensor | None = None,
) -> tuple[Unseen, jax.Array, jax.Array]:
    """All drones look; what they see leaves `unseen`.

    Args:
      key: for sensors that need one.
      unseen: the cells not seen so far.
      position: [N, 3], metres.
      visibility: [], 0 to 1.
      config: static sizes.
      sensor: None: the one of `config.sensing`.

    Returns:
      The new `Unseen`, the number of newly seen coverable cells, and how many cell sides the
      perimeter of the unseen area grew by; int32.
    """
    sensor = sensor or SENSORS[config.sensing]
    radius = sensor.radius(position[:, 2], visibility)
    cell = jnp.floor(position[:, 1::-1] / config.cell_size).astype(jnp.int32)
    starts = jax.vmap(_window_start, (0, None, None))(cell, window_cells(config), config)
    keys = None
    if sensor.needs_key:
        assert key is not None
        keys = jax.random.split(key, position.shape[0])
    masks = jax.vmap(sensor.mask, (0, 0, 0, None, 0, None))(
        keys, position, radius, visibility, starts, config
    )

    # One drone after the other, for two footprints may overlap, and only the first counts a cell.
    def one_drone(words: jax.Array, drone: tuple) -> tuple[jax.Array, jax.Array]:
        mask, start = drone
        old = jax.lax.dynamic_slice(words, start, mask.shape)
        return jax.lax.dynamic_update_slice(words, old & ~mask, start), old

    words, old = jax.lax.scan(one_drone, unseen.words, (masks, starts))
    new, left = materialise((old & masks, old & ~masks))
    coarse = count_down(unseen.coarse, new, starts, config)
    newly_seen = jnp.sum(jax.lax.population_count(new), dtype=jnp.int32)
    growth = jnp.sum(perimeter(left) - perimeter(old))
    return Unseen(words, coarse), newly_seen, growth


def perimeter(words: jax.Array) -> jax.Array:
    """Cell sides between an unseen cell and one that is not, int32 [...].

    Args:
      words: [..., rows, words], a bit map or a window of it; sides on its edge do not count.
    """
    last = words[..., -1:] >> (WORD - 1)
    right = jnp.concatenate([words[..., 1:], last], axis=-1)
    along = words ^ ((words >> 1) | (right << (WORD - 1)))
    across = words[..., 1:, :] ^ words[..., :-1, :]
    count = jax.lax.population_count
    return jnp.sum(count(along), (-2, -1), jnp.int32) + jnp.sum(count(across), (-2, -1), jnp.int32)


def count_down(
    coarse: tuple[jax.Array, ...],
    new: jax.Array,
    starts: tuple[jax.Array, jax.Array],
    config: EnvConfig,
) -> tuple[jax.Array, ...]:
    """Takes newly seen bits from the counts of the coarse blocks they lie in.

    Args:
      coarse: the padded counts of every level.
      new: [N, rows, words], newly seen bits of each drone; none is seen by two.
      starts: [N] and [N], first row and word of each drone's window.
      config: static sizes.
    """
    row_margin, word_margin = margins(config)
    row, column = starts[0] - row_margin, (starts[1] - word_margin) * WORD
    halves = jnp.stack([new & 0xFFFF, new >> 16], axis=-1).reshape(*new.shape[:2], -1)
    counts = materialise(jax.lax.population_count(halves).astype(jnp.int32))
    updated, row_step, column_step = [], 1, FIRST_COARSE
    for level, block in zip(coarse, coarse_blocks(config), strict=True):
        counts = _sum_aligned(counts, row, row_step, block)
        if block > column_step:
            counts = _sum_aligned(counts.swapaxes(1, 2), column, column_step, block).swapaxes(1, 2)
        row, column = row // block * block, column // block * block
        row_step = column_step = block
        margin = coarse_margin(block, config)
        rows = (row // block + margin)[:, None, None] + jnp.arange(counts.shape[1])[:, None]
        columns = (column // block + margin)[:, None, None] + jnp.arange(counts.shape[2])
        updated.append(level.at[rows, columns].add(-counts, mode="promise_in_bounds"))
    return tuple(updated)


def _sum_aligned(counts: jax.Array, first: jax.Array, step: int, block: int) -> jax.Array:
    """Sums the rows of counts [N, rows, columns], `step` cells apart from cell `first` [N], into
    aligned blocks of `block` cells."""
    blocks = -(-(counts.shape[1] - 1) // (block // step)) + 1
    index = (first[:, None] + step * jnp.arange(counts.shape[1])) // block
    member = (index - first[:, None] // block)[:, None, :] == jnp.arange(blocks)[:, None]
    chosen = jnp.where(materialise(member)[..., None], counts[:, None], 0)
    return materialise(jnp.sum(chosen, axis=2))


def fine_window(unseen: Unseen, cell: jax.Array, config: EnvConfig) -> jax.Array:
    """The 32 x 32 cells around a cell, one word per row: bit k of word i is the cell
    (row - 16 + i, column - 16 + k)."""
    half = FINE_WINDOW // 2
    start = _window_start(cell, half, config)
    pair = materialise(jax.lax.dynamic_slice(unseen.words, start, (FINE_WINDOW, 2)))
    shift = ((cell[1] - half) % WORD).astype(jnp.uint32)
    # A shift by 32 is undefined, hence two shifts on the right.
    return materialise((pair[:, 0] >> shift) | ((pair[:, 1] << 1) << (WORD - 1 - shift)))


def window_gain(
    window: jax.Array, cell: jax.Array, end: jax.Array, radius: jax.Array, config: EnvConfig
) -> tuple[jax.Array, jax.Array]:
    """What a look from `end` [3] (m) would change.

    Args:
      window: [32], of `fine_window` around `cell`; cells outside of it do not count.
      cell: [2], row and column.
      end: [3], metres.
      radius: [], of a look from there, metres.
      config: static sizes.

    Returns:
      Cells newly seen, in units of what a straight flight into the unseen sees in a step; and
      growth of the unseen area's perimeter, in units of a lone cell's four sides.
    """
    corner = (cell[0] - FINE_WINDOW // 2, cell[1] - FINE_WINDOW // 2)
    mask = disc_mask(end, radius, corner, (FINE_WINDOW, 1), config)[:, 0]
    # Kept: the perimeter reads every row three times, and would draw the disc as often.
    left = materialise(window & ~mask)
    count = jnp.sum(jax.lax.population_count(window ^ left), dtype=jnp.int32)
    growth = perimeter(left[:, None]) - perimeter(window[:, None])
    return count * (config.cell_size / (2 * radius)), growth / 4.0


def fine_view(window: jax.Array, block: int) -> jax.Array:
    """Unseen share [9, 9] of blocks of `block` (1 or 3) cells; the drone's cell is the middle."""
    size = FINE_SIDE * block
    first = FINE_WINDOW // 2 - size // 2
    shifts = (first + block * jnp.arange(FINE_SIDE)).astype(jnp.uint32)
    rows = window[first : first + size, None] >> shifts
    counts = jax.lax.population_count(rows & jnp.uint32((1 << block) - 1))
    counts = counts.reshape(FINE_SIDE, block, FINE_SIDE).sum(axis=1)
    return counts.astype(jnp.float32) / block**2


def coarse_view(level: jax.Array, place: jax.Array, block: int, config: EnvConfig) -> jax.Array:
    """Unseen share [side, side] of blocks of `block` cells around a place.

    The kept blocks are aligned with the city, the view with the drone: counts are interpolated
    between the two blocks that a view's block overlaps along each axis.

    Args:
      level: the padded counts of this block size.
      place: [2], row and column as real numbers, in cells.
      block: side of a block, cells.
      config: static sizes.
    """
    side = view_side(block, config)
    in_blocks = place / block
    corner = jnp.floor(in_blocks).astype(jnp.int32)
    fraction = in_blocks - corner
    start = corner - side // 2 + coarse_margin(block, config)
    counts = jax.lax.dynamic_slice(level, (start[0], start[1]), (side + 1, side + 1))
    counts = materialise(counts)
    counts = counts.astype(jnp.float32) / block**2
    counts = counts[:-1] * (1 - fraction[0]) + counts[1:] * fraction[0]
    return counts[:, :-1] * (1 - fraction[1]) + counts[:, 1:] * fraction[1]


@dataclasses.dataclass(frozen=True)
class Sensor:
    """How drones see: one of one's own is given as `Parts(sensor=...)`."""

    mask: Callable[..., jax.Array]
    """Bits [rows, words] of the cells that one look of one drone sees; arguments as of
    `chance_mask`."""
    needs_key: bool = False
    """Whether a look is drawn by chance; otherwise the key is None."""
    radius: Callable[[jax.Array, jax.Array], jax.Array] = footprint_radius
    """How far a look reaches, metres, from altitude and visibility; it decides what can be covered.
    At most `EnvConfig.max_footprint`, for which windows have room."""
    gain: Callable[..., tuple[jax.Array, jax.Array]] = window_gain
    """What a drone expects of a look; arguments as of `window_gain`."""

    def check(self, config: EnvConfig) -> None:
        """Raises `ConfigError` when it reaches further than windows have room."""
        with jax.ensure_compile_time_eval():
            reach = float(self.radius(jnp.float32(config.max_altitude), jnp.float32(1)))
        most = config.max_footprint
        require(reach <= most * (1 + 1e-6), "Sensor.radius", reach, f"must be at most {most:g} m")


SENSORS = {
    "footprint": Sensor(
        lambda key, position, radius, visibility, start, config: footprint_mask(
            position, radius, start, config
        )
    ),
    "probabilistic": Sensor(chance_mask, needs_key=True),
}
"""By `EnvConfig.sensing`."""
