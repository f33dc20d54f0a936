"""How drones start, move, are blocked, lose commands and come into conflict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix.config import ALTITUDE_SLACK, CONFLICT_HORIZONTAL, CONFLICT_VERTICAL, EnvConfig
from jaxqmix.types import (
    ACTIONS,
    BORDER,
    BUILDING,
    DELAYED,
    DESCEND,
    DIRECTIONS,
    FREE,
    HEADINGS,
    HOVER,
    LOST,
    NO_FLY,
    RECEIVED,
    City,
    EnvParams,
    replace,
)

CLEARANCE = 10.0
"""Distance kept from teammates beyond the conflict distance, metres: turbulence parts them."""
DRIFT = 4.0
"""How far beside its way the air may set a drone within a step, metres; more is rare."""
WIND_DRIFT = 0.05
"""Share of the wind that station keeping does not cancel."""


def displacements(config: EnvConfig) -> jax.Array:
    """Metres [A, 3] along x, y and altitude that each action moves a drone."""
    return jnp.asarray(DIRECTIONS * (config.cell_size, config.cell_size, config.climb), jnp.float32)


def obstruction(city: City, position: jax.Array, config: EnvConfig) -> jax.Array:
    """What a drone at a position would be in: FREE, BUILDING, NO_FLY or BORDER.

    Args:
      city: one city.
      position: [..., 3], metres.
      config: static sizes.

    Returns:
      int32 [...]. BORDER is outside the city or the altitude limits and comes before BUILDING
      (not above the roof), which comes before NO_FLY (inside a cylinder, below its ceiling).
    """
    x, y, altitude = position[..., 0], position[..., 1], position[..., 2]
    outside = (x < 0) | (x >= config.city_width) | (y < 0) | (y >= config.city_length)
    low, high = config.min_altitude - ALTITUDE_SLACK, config.max_altitude + ALTITUDE_SLACK
    outside |= (altitude > high) | (altitude < low)
    row = jnp.clip(jnp.floor(y / config.cell_size).astype(jnp.int32), 0, config.rows - 1)
    column = jnp.clip(jnp.floor(x / config.cell_size).astype(jnp.int32), 0, config.columns - 1)
    building = altitude <= city.heights[row, column]
    code = jnp.where(in_no_fly(city.no_fly, position), NO_FLY, FREE)
    return jnp.where(outside, BORDER, jnp.where(building, BUILDING, code)).astype(jnp.int32)


def in_no_fly(no_fly: jax.Array, position: jax.Array) -> jax.Array:
    """Whether positions [..., 3] lie inside a cylinder of `no_fly` [K, 4], below its ceiling."""
    inside = jnp.zeros(position.shape[:-1], bool)
    for cylinder in no_fly:
        offset = position[..., :2] - cylinder[:2]
        squared = offset[..., 0] ** 2 + offset[..., 1] ** 2
        inside |= (squared < cylinder[2] ** 2) & (position[..., 2] < cylinder[3])
    return inside


def obstructed_actions(city: City, position: jax.Array, config: EnvConfig) -> jax.Array:
    """What obstructs each action [N, A] from positions [N, 3]; hovering is always FREE."""
    # The drone is somewhere free, so the last action needs no look.
    targets = position[:, None, :] + displacements(config)[:HOVER]
    codes = obstruction(city, targets, config)
    return jnp.pad(codes, ((0, 0), (0, 1)), constant_values=FREE)


def safe_repeats(city: City, position: jax.Array, config: EnvConfig) -> tuple[jax.Array, jax.Array]:
    """How often late commands may repeat each action before it strikes something.

    Ascending and hovering strike nothing, and neither does the border. Air sets a drone off its
    way: of the first repeat, buildings up to `DRIFT` beside it count too, and zones are as much
    wider. Further repeats are looked at again after the next step.

    Args:
      city: one city.
      position: [N, 3], metres.
      config: static sizes.

    Returns:
      The number [N, A] of repeats that are safe, as far as is foreseen: `config.foresight` for
      buildings, `config.zone_foresight` for no-fly zones, and the larger of both where nothing is
      struck. And whether the first repeat strikes [N, A], if nothing sets the drone off.
    """
    most = max(config.foresight, config.zone_foresight)
    moves = displacements(config)
    ways = jnp.concatenate([moves[:HEADINGS], moves[DESCEND][None]])
    counts = 2 + jnp.arange(max(most, 1))
    ends = position[:, None, None] + counts[:, None, None] * ways  # [N, repeats, 5, 3]
    # Zones apart from buildings: they are foreseen less far, and every look at them costs.
    built = replace(city, no_fly=city.no_fly[:0])
    codes = obstruction(built, ends, config)
    near = ends[:, : max(config.zone_foresight, 1)]
    zones = in_no_fly(city.no_fly, near) & (codes[:, : near.shape[1]] == FREE)
    twice = (codes[:, 0] == BUILDING) | zones[:, 0]
    # At right angles to a heading; nothing is beside a descent.
    aside = jnp.pad(ways[:, [1, 0]] * (DRIFT / config.cell_size), ((0, 0), (0, 1)))
    beside = obstruction(built, jnp.stack([ends[:, 0] - aside, ends[:, 0] + aside]), config)
    buildings = (codes == BUILDING).at[:, 0].max(jnp.any(beside == BUILDING, axis=0))
    wide = in_no_fly(city.no_fly.at[:, 2].add(DRIFT), ends[:, 0]) & (codes[:, 0] != BORDER)
    zones = zones.at[:, 0].max(wide)
    strike = buildings & (counts[:, None] < 2 + config.foresight)
    if config.zone_foresight:
        strike = strike.at[:, : near.shape[1]].max(zones)
    repeats = jnp.sum(jnp.cumprod(~strike, axis=1, dtype=jnp.int32), axis=1)
    repeats = jnp.minimum(repeats, most)
    return _with_ascent(repeats, most), _with_ascent(twice, False)


def _with_ascent(values: jax.Array, other: int | bool) -> jax.Array:
    """Values [N, 5] of the headings and the descent as [N, A], `other` for the rest."""
    rest = jnp.full_like(values[:, :1], other)
    return jnp.concatenate([values[:, :HEADINGS], rest, values[:, HEADINGS:], rest], axis=1)


def collision_free_actions(
    position: jax.Array, last_action: jax.Array, config: EnvConfig
) -> jax.Array:
    """Whether each action [N, A] keeps clear of the teammates, also when it is repeated.

    Nobody flies at a teammate, by a move and `config.foresight` repeats, which late commands could
    make: not nearer than leaves room for a move of the teammate's own, and not into the way that
    it flies on when its commands are late. Moves away are always clear, and so is hovering.
    Conflicts still come from several lost and late commands at once.

    Args:
      position: [N, 3], metres.
      last_action: [N], executed in the last step.
      config: static sizes.
    """
    near = CONFLICT_HORIZONTAL + CLEARANCE
    offset = position[None, :, :] - position[:, None, :]
    way = config.foresight * displacements(config)[last_action]
    end = offset + jnp.where(jnp.eye(position.shape[0], dtype=bool)[..., None], 0.0, way)
    room = (near + config.cell_size, CONFLICT_VERTICAL + config.climb)
    meets = _flies_at(offset, offset, *room, config)
    meets |= _flies_at(
        jnp.minimum(offset, end), jnp.maximum(offset, end), near, CONFLICT_VERTICAL, config
    )
    return jnp.pad(~jnp.any(meets, axis=2), ((0, 0), (0, 1)), constant_values=True)


def _flies_at(
    low: jax.Array, high: jax.Array, horizontal: float, vertical: float, config: EnvConfig
) -> jax.Array:
    """Whether a move and its repeats lead towards boxes and closer to them than so many metres,
    [N, moves, N]; the boxes' corners [N, N, 3] are offsets from each drone."""
    gap = jnp.maximum(jnp.maximum(low, -high), 0.0)
    moves = 1 + config.foresight
    found = []
    for axis, sign in ((1, -1), (1, 1), (0, -1), (0, 1), (2, 1), (2, -1)):  # as ACTIONS
        first, last = (low, high) if sign > 0 else (-high, -low)
        length = moves * (config.climb if axis == 2 else config.cell_size)
        left = jnp.maximum(first[..., axis] - length, 0.0)
        x, y, z = (left if axis == other else gap[..., other] for other in range(3))
        close = (x**2 + y**2 < horizontal**2) & (z < vertical)
        found.append((last[..., axis] > 0) & close)
    return jnp.stack(found, axis=1)


def available_actions(obstructed: jax.Array, repeats: jax.Array, clear: jax.Array) -> jax.Array:
    """Actions [N, A] that a drone may choose.

    Those that nothing obstructs, that keep clear of teammates, and that may be repeated as often
    as any heading among them.

    Args:
      obstructed: [N, A], from `obstructed_actions`.
      repeats: [N, A], from `safe_repeats`.
      clear: [N, A], from `collision_free_actions`.
    """
    free = (obstructed == FREE) & clear
    most = jnp.max(jnp.where(free, repeats, -1)[:, :HEADINGS], axis=1, keepdims=True)
    return free & (repeats >= most)


def draw_disturbances(key: jax.Array, drones: int) -> tuple[jax.Array, jax.Array]:
    """What is random in a step of N drones, apart from what a look may miss. Consumes the key.

    One draw for all: on CPU every further draw costs as much as moving the drones.

    Returns:
      Chances of the link [N, 2], uniform in 0 .. 1, for loss and delay; and [N, 5] standard normal
      numbers: turbulence x, y and the errors of the observed x, y, altitude.
    """
    draw = jax.random.uniform(key, (drones, 7), minval=np.nextafter(np.float32(-1), 0), maxval=1)
    return (draw[:, :2] + 1) / 2, np.sqrt(2) * jax.lax.erf_inv(draw[:, 2:])


def deliver(
    chances: jax.Array, actions: jax.Array, last_action: jax.Array, params: EnvParams
) -> tuple[jax.Array, jax.Array]:
    """Sends commands over the lossy link.

    Args:
      chances: [N, 2], uniform random numbers for loss and delay.
      actions: [N], commands.
      last_action: [N], executed in the last step.
      params: packet_loss and delay.

    Returns:
      The executed actions [N] (hover when lost, the last action when delayed) and the link's state
      [N]: RECEIVED, LOST or DELAYED.
    """
    lost = chances[:, 0] < params.packet_loss
    delayed = (chances[:, 1] < params.delay) & ~lost
    executed = jnp.where(lost, HOVER, jnp.where(delayed, last_action, actions))
    link = jnp.where(lost, LOST, jnp.where(delayed, DELAYED, RECEIVED))
    return executed, link.astype(jnp.int32)


def move(
    position: jax.Array,
    executed: jax.Array,
    obstructed: jax.Array,
    turbulence: jax.Array,
    city: City,
    params: EnvParams,
    config: EnvConfig,
) -> tuple[jax.Array, jax.Array]:
    """Moves the drones; an obstructed move is not made.

    Wind and turbulence then displace each drone a little in the plane, unless that would take it
    where it must not be: station keeping holds it.

    Args:
      position: [N, 3], metres.
      executed: [N], actions.
      obstructed: [N, A], from `obstructed_actions` at `position`.
      turbulence: [N, 2], standard normal numbers.
      city: one city.
      params: wind and turbulence.
      config: static sizes.

    Returns:
      New positions [N, 3], and what obstructed each drone's move [N].
    """
    # A one-hot product instead of gathers: they do not vectorise.
    chosen = executed[:, None] == jnp.arange(len(ACTIONS))
    code = jnp.sum(jnp.where(chosen, obstructed, 0), axis=1)
    step = jnp.sum(jnp.where(chosen[:, :, None], displacements(config), 0.0), axis=1)
    position = jnp.where((code == FREE)[:, None], position + step, position)
    drift = params.wind * (WIND_DRIFT * config.step_seconds) + params.turbulence * turbulence
    drifted = position + jnp.pad(drift, ((0, 0), (0, 1)))
    held = obstruction(city, drifted, config) != FREE
    return jnp.where(held[:, None], position, drifted), code


def conflicts(before: jax.Array, after: jax.Array) -> jax.Array:
    """Drones [N] (bool) too close to another at the end or at the middle of a move.

    The middle catches two drones that swap places. Positions are [N, 3], metres.
    """
    near = _near(after) | _near((before + after) / 2)
    return jnp.any(near & ~jnp.eye(after.shape[0], dtype=bool), axis=1)


def _near(position: jax.Array) -> jax.Array:
    offset = position[:, None, :] - position[None, :, :]
    horizontal = offset[..., 0] ** 2 + offset[..., 1] ** 2 < CONFLICT_HORIZONTAL**2
    return horizontal & (jnp.abs(offset[..., 2]) < CONFLICT_VERTICAL)


def start_altitude(config: EnvConfig) -> float:
    """Altitude at which drones start, metres: a whole number of climbs, about half way up."""
    climbs = (config.max_altitude - config.min_altitude) // config.climb
    return config.min_altitude + config.climb * (climbs // 2)


def start_pads(heights: jax.Array, no_fly: jax.Array, config: EnvConfig) -> jax.Array:
    """Which pads of the start lattice [rows, columns] are free of buildings and no-fly zones."""
    spacing = config.start_spacing
    rows, columns = config.start_pads
    offset = spacing // 2
    ground = heights[offset::spacing, offset::spacing][:rows, :columns]
    free = ground < start_altitude(config)
    return free & ~in_no_fly(no_fly, pad_positions(config).reshape(rows, columns, 3))


def pad_positions(config: EnvConfig) -> jax.Array:
    """Positions [pads, 3] of the start lattice, metres."""
    spacing, (rows, columns) = config.start_spacing, config.start_pads
    row = (jnp.arange(rows) * spacing + spacing // 2 + 0.5) * config.cell_size
    column = (jnp.arange(columns) * spacing + spacing // 2 + 0.5) * config.cell_size
    y, x = jnp.meshgrid(row, column, indexing="ij")
    places = jnp.stack([x, y, jnp.full_like(x, start_altitude(config))], axis=-1)
    return places.reshape(-1, 3).astype(jnp.float32)


def start(
    key: jax.Array, heights: jax.Array, no_fly: jax.Array, config: EnvConfig
) -> tuple[jax.Array, jax.Array]:
    """Places the drones on distinct pads: the free pads with the highest random scores.

    One sort, no rejection. When too few pads are free, the building on a chosen pad is cleared;
    pads in no-fly zones come last, and the lattice is at least twice as large as the swarm.

    Returns:
      Heights [H, W] with chosen pads open, and positions [N, 3] in metres.
    """
    positions = pad_positions(config)
    free = start_pads(heights, no_fly, config).reshape(-1)
    score = jax.random.uniform(key, free.shape) + free - 2.0 * in_no_fly(no_fly, positions)
    _, chosen = jax.lax.top_k(score, config.drones)
    position = positions[chosen]
    row = jnp.floor(position[:, 1] / config.cell_size).astype(jnp.int32)
    column = jnp.floor(position[:, 0] / config.cell_size).astype(jnp.int32)
    roof = heights[row, column]
    ground = jnp.where(roof >= start_altitude(config), 0, roof).astype(heights.dtype)
    return heights.at[row, column].set(ground), position
