"""How a scripted drone chooses a cell and flies to it.

Drones climb to the altitude with the largest footprint and fly the shortest way around no-fly
cylinders. Places are x, y in metres. A drone need not reach a cell, only bring it into its
footprint.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxqmix.config import EnvConfig
from jaxqmix.env.city import cell_centres, footprint_radius
from jaxqmix.env.dynamics import displacements
from jaxqmix.env.observation import feature_slices
from jaxqmix.env.sensing import WORD, footprint_mask, margins, unpack_unseen, window_cells
from jaxqmix.types import ACTIONS, ASCEND, DESCEND, City, State, Timestep, pytree_dataclass

TRAIL = 8
"""Steps for which a drone remembers where it was."""
REVISIT = 0.75
"""Cost of being again where it was, cells for each time; leads out of dead ends."""
PATIENCE = 12
"""Steps without coming nearer after which a cell is given up."""
RETRY = 20
"""Steps for which a given-up cell is left alone; for as long again, its drone chooses last."""
CLIMB = 10.0
"""Worth, in cells, of climbing; the footprint grows and buildings stay below."""
CLAIM = 2.0
"""Cells within so many footprint radii of a teammate's goal are left to it."""
FRESH = 8.0
"""Worth, in cells of way, of a move that newly sees as much as a straight flight into the unseen
does: near unseen cells the gain leads, away from them the way does."""


@pytree_dataclass
class PursuitState:
    """What a drone remembers of its goals."""

    goal: jax.Array  # [N, 2] int32, row and column of the cell last headed for; -1 for none
    nearest: jax.Array  # [N] float32, shortest way to it so far, m
    stalled: jax.Array  # [N] int32, steps since it came nearer
    blocked: jax.Array  # [N] int32, env step until which teammates choose before this drone
    given_up: jax.Array  # [H, W] int32, env step until which a cell is left alone
    trail: jax.Array  # [N, TRAIL, 2] float32, latest places, m


def initial_hidden_state(config: EnvConfig) -> PursuitState:
    """The hidden state before the first step."""
    drones = config.drones
    return PursuitState(
        goal=jnp.full((drones, 2), -1, jnp.int32),
        nearest=jnp.zeros(drones),
        stalled=jnp.zeros(drones, jnp.int32),
        blocked=jnp.zeros(drones, jnp.int32),
        given_up=jnp.zeros((config.rows, config.columns), jnp.int32),
        trail=jnp.full((drones, TRAIL, 2), -1e6),
    )


def goal_radius(timestep: Timestep, config: EnvConfig) -> jax.Array:
    """Footprint radius at the highest altitude, metres, in the visibility that drones observe."""
    visibility = timestep.observation.agents[0, feature_slices(config)["weather"]][3]
    return footprint_radius(jnp.float32(config.top_altitude), visibility)


def cells_to_see(state: State, hidden_state: PursuitState, config: EnvConfig) -> jax.Array:
    """Unseen coverable cells [H, W], bool, less those given up for now."""
    return unpack_unseen(state.unseen, config) & (hidden_state.given_up <= state.time)


def goal_place(goal: jax.Array, config: EnvConfig) -> jax.Array:
    """Centres [N, 2] in metres of cells [N, 2]."""
    return (goal[:, ::-1] + 0.5) * config.cell_size


def nearest_cells(
    state: State,
    open_cells: jax.Array,
    hidden_state: PursuitState,
    radius: jax.Array,
    territory: bool,
    config: EnvConfig,
) -> jax.Array:
    """The nearest open cell of every drone.

    The drones choose one after the other, the one nearest to its last goal first, and one that has
    lately given up a cell last: a teammate may be on the better side of it. A chosen goal takes the
    cells around it out of the choice of the others.

    Args:
      state: one swarm.
      open_cells: [H, W] bool.
      hidden_state: holds the last goals.
      radius: [], footprint radius, metres.
      territory: prefer cells that are nearer to no teammate.
      config: static sizes.

    Returns:
      Row and column [N, 2] int32; -1 where no cell is left.
    """
    y, x = cell_centres(config)
    place = state.position[:, :2]

    def squared(place: jax.Array) -> jax.Array:
        return (x - place[0]) ** 2 + (y - place[1]) ** 2

    if territory:
        elsewhere = config.city_width**2 + config.city_length**2
        least = jax.lax.fori_loop(
            0, config.drones, lambda i, least: jnp.minimum(least, squared(place[i])),
            jnp.full((config.rows, config.columns), jnp.inf),
        )  # fmt: skip

    def choose(open_cells: jax.Array, drone: jax.Array) -> tuple[jax.Array, jax.Array]:
        cost = squared(place[drone])
        if territory:
            cost = jnp.where(cost <= least, cost, cost + elsewhere)
        goal = argmin_cell(jnp.where(open_cells, cost, jnp.inf))
        claimed = squared((goal[::-1] + 0.5) * config.cell_size) < (CLAIM * radius) ** 2
        return open_cells & ~claimed, goal

    last = jnp.sum((goal_place(hidden_state.goal, config) - place) ** 2, axis=1)
    order = jnp.argsort(jnp.where(state.time < hidden_state.blocked, jnp.inf, last))
    _, goals = jax.lax.scan(choose, open_cells, order)
    return jnp.zeros_like(goals).at[order].set(goals)


def argmin_cell(cost: jax.Array) -> jax.Array:
    """Row and column [2] int32 of the least of `cost` [H, W]; -1 when all are infinite.

    A plain minimum per row vectorises; an argmin over all cells does not.
    """
    least = jnp.min(cost, axis=1)
    row = jnp.argmin(least)
    column = jnp.argmin(cost[row])
    cell = jnp.stack([row, column]).astype(jnp.int32)
    return jnp.where(jnp.isfinite(least[row]), cell, -1)


def pursue(
    state: State,
    available: jax.Array,
    goal: jax.Array,
    place: jax.Array,
    hidden_state: PursuitState,
    radius: jax.Array,
    fresh: jax.Array | float,
    config: EnvConfig,
) -> tuple[jax.Array, PursuitState]:
    """Flies every drone towards its place.

    Args:
      state: one swarm.
      available: [N, A] bool.
      goal: [N, 2] int32, the cells to see; -1 for a drone without a goal, which stays.
      place: [N, 2], where to fly for that, metres.
      hidden_state: of the last step.
      radius: [], footprint radius, metres.
      fresh: [] or [N, 1], worth in cells of a move that sees as much new as a straight flight does.
      config: static sizes.

    Returns:
      Actions [N] int32, and the new hidden state.
    """
    active = goal[:, 0] >= 0
    place = jnp.where(active[:, None], place, state.position[:, :2])
    place = out_of_cylinders(state.city, place, state.position[:, 2:], config)
    hidden_state = remember(state, goal, hidden_state, config)
    ends = state.position[:, None, :] + displacements(config)
    cost = way_length(ends[..., :2], place[:, None, :], state, config) / config.cell_size
    cost -= fresh * newly_seen(state, ends, radius, config)
    cost += REVISIT * jnp.where(active[:, None], visits(hidden_state.trail, ends, config), 0)
    cost -= 0.01 * (state.last_action[:, None] == jnp.arange(len(ACTIONS)))  # breaks ties
    cost = cost.at[:, ASCEND].add(-CLIMB).at[:, DESCEND].add(CLIMB)
    actions = jnp.argmin(jnp.where(available, cost, jnp.inf), axis=-1)
    return actions.astype(jnp.int32), hidden_state


def visits(trail: jax.Array, ends: jax.Array, config: EnvConfig) -> jax.Array:
    """How often [N, A] a drone's trail [N, TRAIL, 2] has been at each of its `ends` [N, A, 3]."""
    offset = ends[:, :, None, :2] - trail[:, None, :, :]
    same = jnp.sum(offset**2, axis=-1) < (config.cell_size / 2) ** 2
    return jnp.sum(same, axis=-1)


def newly_seen(state: State, ends: jax.Array, radius: jax.Array, config: EnvConfig) -> jax.Array:
    """Unseen cells in the footprints at `ends` [N, A, 3], as a share [N, A] of what a straight
    flight into the unseen sees in a step."""
    reach = window_cells(config)
    row_margin, word_margin = margins(config)
    last = jnp.array([config.rows - 1, config.columns - 1])

    def count(end: jax.Array) -> jax.Array:
        row, column = jnp.clip(jnp.floor(end[1::-1] / config.cell_size).astype(jnp.int32), 0, last)
        start = (row - reach + row_margin, (column - reach) // WORD + word_margin)
        mask = footprint_mask(end, radius, start, config)
        window = jax.lax.dynamic_slice(state.unseen.words, start, mask.shape)
        return jnp.sum(jax.lax.population_count(window & mask))

    return jax.vmap(jax.vmap(count))(ends) * (config.cell_size / (2 * radius))


def berth(config: EnvConfig) -> float:
    """Distance from no-fly cylinders at which a drone may fly around them, metres: nearer ones are
    reached by moves that late commands would repeat into the zone."""
    return (max(config.zone_foresight, 1) - 0.5) * config.cell_size


def out_of_cylinders(
    city: City, place: jax.Array, altitude: jax.Array, config: EnvConfig
) -> jax.Array:
    """Places [..., 2] moved straight out of the no-fly cylinders that cannot be overflown at an
    altitude ([] or [..., 1], metres)."""
    for cylinder in city.no_fly:
        offset = place - cylinder[:2]
        distance = jnp.maximum(jnp.hypot(offset[..., 0], offset[..., 1]), 1e-3)[..., None]
        radius = cylinder[2] + berth(config)
        rim = cylinder[:2] + offset / distance * radius
        inside = distance < radius
        place = jnp.where(inside & (altitude < cylinder[3]), rim, place)
    return place


def way_length(start: jax.Array, end: jax.Array, state: State, config: EnvConfig) -> jax.Array:
    """Length [N, A] in metres of the way around the no-fly cylinders.

    Around one cylinder it is exact: two tangents and an arc. Several add up.

    Args:
      start: [N, A, 2], metres.
      end: [N, 1, 2], metres.
      state: the cylinders, and the drones' altitudes.
      config: static sizes.
    """
    straight = jnp.hypot(start[..., 0] - end[..., 0], start[..., 1] - end[..., 1])
    length = straight
    for cylinder in state.city.no_fly:
        radius = cylinder[2] + berth(config)
        a, b = start - cylinder[:2], end - cylinder[:2]
        from_start = jnp.maximum(jnp.hypot(a[..., 0], a[..., 1]), radius)
        from_end = jnp.maximum(jnp.hypot(b[..., 0], b[..., 1]), radius)
        cross = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
        angle = jnp.abs(jnp.arctan2(cross, jnp.sum(a * b, axis=-1)))
        arc = angle - tangent_angle(radius, from_start) - tangent_angle(radius, from_end)
        tangents = tangent_length(radius, from_start) + tangent_length(radius, from_end)
        detour = tangents + radius * arc - straight
        blocked = (arc > 0) & (state.position[:, 2:] < cylinder[3])
        length = length + jnp.where(blocked, jnp.maximum(detour, 0.0), 0.0)
    return length


def tangent_angle(radius: jax.Array, distance: jax.Array) -> jax.Array:
    """Angle at a circle's centre between a point at `distance` and its tangent point, radians."""
    return jnp.arccos(jnp.minimum(radius / distance, 1.0))


def tangent_length(radius: jax.Array, distance: jax.Array) -> jax.Array:
    """Length of the tangent from a point at `distance` from a circle's centre, metres."""
    return jnp.sqrt(jnp.maximum(distance**2 - radius**2, 0.0))


def remember(
    state: State, goal: jax.Array, hidden_state: PursuitState, config: EnvConfig
) -> PursuitState:
    """The hidden state with this step's goals [N, 2]; hopeless cells are given up."""
    here = state.position[:, :2]
    place = goal_place(goal, config)
    place = out_of_cylinders(state.city, place, state.position[:, 2:], config)
    unseen = unpack_unseen(state.unseen, config)
    old = jnp.maximum(hidden_state.goal, 0)
    reached = (hidden_state.goal[:, 0] < 0) | (goal[:, 0] < 0) | ~unseen[old[:, 0], old[:, 1]]
    changed = jnp.any(goal != hidden_state.goal, axis=1)
    way = way_length(here[:, None, :], place[:, None, :], state, config)[:, 0]
    nearer = ~changed & (way < hidden_state.nearest - config.cell_size / 4)
    nearest = jnp.where(changed | nearer, way, hidden_state.nearest)
    stalled = jnp.where(reached | nearer, 0, hidden_state.stalled + 1)
    hopeless = stalled > PATIENCE
    rows = goal[:, :1] + jnp.array([-1, -1, -1, 0, 0, 0, 1, 1, 1])
    columns = goal[:, 1:] + jnp.array([-1, 0, 1, -1, 0, 1, -1, 0, 1])
    rows = jnp.where(hopeless[:, None] & (columns >= 0) & (rows >= 0), rows, config.rows)
    given_up = hidden_state.given_up.at[rows, columns].set(state.time + RETRY, mode="drop")
    trail = jnp.concatenate([here[:, None, :], hidden_state.trail[:, :-1]], axis=1)
    stalled = jnp.where(hopeless, 0, stalled)
    blocked = jnp.where(hopeless, state.time + 2 * RETRY, hidden_state.blocked)
    return PursuitState(goal, nearest, stalled, blocked, given_up, trail)
