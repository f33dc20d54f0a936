"""How drones start, move, are blocked, lose commands and come into conflict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix.config import CONFLICT_HORIZONTAL, CONFLICT_VERTICAL, EnvConfig
from jaxqmix.types import (
    ACTIONS,
    BORDER,
    BUILDING,
    DELAYED,
    FREE,
    HEADINGS,
    HOVER,
    LOST,
    NO_FLY,
    RECEIVED,
    City,
    EnvParams,
)

CLEARANCE = 10.0
"""Distance kept from teammates beyond the conflict distance, metres: turbulence parts them."""
ALTITUDE_SLACK = 0.01
"""Metres beyond the altitude limits that are still inside: climbs add up in float32."""
WIND_DRIFT = 0.05
"""Share of the wind that station keeping does not cancel."""


def displacements(config: EnvConfig) -> jax.Array:
    """Metres [A, 3] along x, y and altitude that each action moves a drone."""
    cell, climb = config.cell_size, config.climb
    moves = {
        "north": (0.0, -cell, 0.0),
        "south": (0.0, cell, 0.0),
        "west": (-cell, 0.0, 0.0),
        "east": (cell, 0.0, 0.0),
        "ascend": (0.0, 0.0, climb),
        "descend": (0.0, 0.0, -climb),
        "hover": (0.0, 0.0, 0.0),
    }
    return jnp.array([moves[action] for action in ACTIONS], jnp.float32)


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


def obstructed_actions(
    city: City, position: jax.Array, config: EnvConfig, times: int = 1
) -> jax.Array:
    """What obstructs each action [N, A] from positions [N, 3], or the last of `times` moves of the
    same action; hovering is always FREE."""
    # The drone is somewhere free, so the last action needs no look.
    targets = position[:, None, :] + times * displacements(config)[:HOVER]
    codes = obstruction(city, targets, config)
    return jnp.pad(codes, ((0, 0), (0, 1)), constant_values=FREE)


def strikes(codes: jax.Array) -> jax.Array:
    """Whether what obstructs a move is a building or a no-fly zone, not a border."""
    return (codes == BUILDING) | (codes == NO_FLY)


def strikes_later(city: City, position: jax.Array, config: EnvConfig) -> jax.Array:
    """Whether the second of two equal moves from positions [N, 3] strikes something, for each
    action [N, A]: a late command repeats the last."""
    return strikes(obstructed_actions(city, position, config, times=2))


def collision_free_actions(position: jax.Array, config: EnvConfig) -> jax.Array:
    """Whether each action [N, A] keeps clear of the teammates, from where these are now.

    Nobody flies at a teammate, not by two such moves either. Of two drones that could meet by a
    move each, the eastern one has the right of way, and the other leaves it room. Hovering is
    always clear. Conflicts still come from lost and late commands.

    Args:
      position: [N, 3], metres.
      config: static sizes.
    """
    offset = position[None, :, :] - position[:, None, :]
    x, y, z = offset[..., 0], offset[..., 1], offset[..., 2]
    cell, climb = config.cell_size, config.climb
    near = CONFLICT_HORIZONTAL + CLEARANCE
    gives_way = (x > 0) | ((x == 0) & (y > 0))
    level = jnp.abs(z) < CONFLICT_VERTICAL + climb
    meets = []
    for ahead, beside in ((-y, x), (y, x), (-x, y), (x, y)):
        after_one, after_two = (jnp.maximum(ahead - moves * cell, 0.0) for moves in (1, 2))
        flies_at = after_two**2 + beside**2 < near**2
        no_room = gives_way & (after_one**2 + beside**2 < (near + cell) ** 2)
        meets.append(level & (ahead > 0) & (flies_at | no_room))
    around = x**2 + y**2 < jnp.where(gives_way, near + cell, near) ** 2
    for ahead in (z, -z):
        meets.append(around & (ahead > 0) & (ahead < CONFLICT_VERTICAL + 2 * climb))
    clear = ~jnp.any(jnp.stack(meets, axis=1), axis=2)
    return jnp.pad(clear, ((0, 0), (0, 1)), constant_values=True)


def available_actions(obstructed: jax.Array, strike: jax.Array, clear: jax.Array) -> jax.Array:
    """Actions [N, A] that a drone may choose.

    Those that nothing obstructs, that keep clear of teammates, and that a late command would not
    lead into an obstacle; that last only where it leaves a heading.

    Args:
      obstructed: [N, A], from `obstructed_actions`.
      strike: [N, A], from `strikes_later`.
      clear: [N, A], from `collision_free_actions`.
    """
    free = (obstructed == FREE) & clear
    safe = free & ~strike
    left = jnp.any(safe[:, :HEADINGS], axis=1, keepdims=True)
    return jnp.where(left, safe, free)


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
