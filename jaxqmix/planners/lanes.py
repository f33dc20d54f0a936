"""The planner `lanes`: one long boustrophedon over the city, cut into a part for each drone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxqmix.config import EnvConfig
from jaxqmix.env.city import cell_centres
from jaxqmix.planners.pursuit import (
    FRESH,
    PursuitState,
    argmin_cell,
    berth,
    cells_to_see,
    goal_place,
    goal_radius,
    initial_hidden_state,
    nearest_cells,
    pursue,
)
from jaxqmix.types import State, Timestep, pytree_dataclass, replace

LANE_FRESH = 0.75
"""`pursuit.FRESH` within a lane, where it only turns the drone a little early."""
LANE_WIDTH = 2.0
"""Widest lane, in footprint radii."""
OFF_LANE = 1.0
"""Distance from a lane's centre that is flown back first, cells."""


@pytree_dataclass
class LanesState:
    """What a drone remembers of its sweep; orders are metres along the boustrophedon."""

    common: PursuitState
    part: jax.Array  # [N] int32, which part of the boustrophedon is this drone's
    heading: jax.Array  # [N] float32, 1 towards the end of the part, -1 towards its beginning
    progress: jax.Array  # [N] float32, order reached


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Lanes:
    """A boustrophedon in equal parts, swept in lanes as wide as the footprint."""

    config: EnvConfig

    def initial_hidden_state(self) -> LanesState:
        """No parts yet; they are given out at the first step."""
        nothing = jnp.zeros(self.config.drones)
        part = nothing.astype(jnp.int32)
        return LanesState(initial_hidden_state(self.config), part, nothing, nothing)

    def __call__(self, key: jax.Array, state: State, timestep: Timestep, hidden_state: LanesState):
        """Actions [N] int32 and the new hidden state; see `Policy`."""
        config, common = self.config, hidden_state.common
        radius = goal_radius(timestep, config)
        open_cells = cells_to_see(state, common, config)
        sweep = Sweep(config, radius)
        first = hand_out(sweep, state.position[:, :2], common)
        hidden_state = jax.tree.map(
            lambda new, old: jnp.where(state.time == 0, new, old), first, hidden_state
        )
        goal, hidden_state = next_on_lane(sweep, open_cells, hidden_state)
        place, hidden_state = along_lane(sweep, state, goal, hidden_state)
        # Done, or something long stands across the lane; a teammate may be on the other side.
        done = (goal[:, :1] < 0) | (state.time < common.blocked[:, None])
        helped = nearest_cells(state, open_cells, common, radius, True, config)
        goal = jnp.where(done, helped, goal)
        place = jnp.where(done, goal_place(goal, config), place)
        fresh = jnp.where(done, FRESH, LANE_FRESH)
        available = timestep.observation.available
        actions, common = pursue(state, available, goal, place, common, radius, fresh, config)
        return actions, replace(hidden_state, common=common)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The boustrophedon over one city, in lanes along its longer side.

    A place's order is how far along the boustrophedon it lies, metres.
    """

    config: EnvConfig
    radius: jax.Array  # [], footprint radius, m

    @property
    def length(self) -> float:
        """Length of a lane, metres."""
        return max(self.config.city_length, self.config.city_width)

    @property
    def lanes(self) -> jax.Array:
        """Number of lanes: as few as leave no gap; a whole float32."""
        width = min(self.config.city_length, self.config.city_width)
        return jnp.ceil(width / (LANE_WIDTH * self.radius))

    @property
    def lane_width(self) -> jax.Array:
        """Distance between two lanes' centres, metres."""
        return min(self.config.city_length, self.config.city_width) / self.lanes

    @property
    def part_length(self) -> jax.Array:
        """A drone's share of the boustrophedon, metres."""
        return self.lanes * self.length / self.config.drones

    def split(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Coordinates along and across the lanes, metres."""
        return (y, x) if self.config.city_length >= self.config.city_width else (x, y)

    def join(self, along: jax.Array, across: jax.Array) -> jax.Array:
        """Places [..., 2] from coordinates along and across, metres; swaps as `split` does."""
        return jnp.stack(self.split(along, across), axis=-1)

    def lane(self, across: jax.Array) -> jax.Array:
        """Number of the lane, a whole float32."""
        return jnp.clip(jnp.floor(across / self.lane_width), 0, self.lanes - 1)

    def centre(self, lane: jax.Array) -> jax.Array:
        """Coordinate across of a lane's centre, metres."""
        return (lane + 0.5) * self.lane_width

    def order(self, along: jax.Array, lane: jax.Array) -> jax.Array:
        """Order of places in given lanes: odd lanes are flown backwards."""
        return lane * self.length + jnp.where(lane % 2 == 0, along, self.length - along)

    def place(self, order: jax.Array) -> jax.Array:
        """Places [..., 2] of given order on the lanes' centres."""
        lane = jnp.clip(jnp.floor(order / self.length), 0, self.lanes - 1)
        along = order - lane * self.length
        along = jnp.where(lane % 2 == 0, along, self.length - along)
        return self.join(along, self.centre(lane))


def hand_out(sweep: Sweep, place: jax.Array, common: PursuitState) -> LanesState:
    """Gives drones at places [N, 2] their parts of the boustrophedon.

    Parts go to the drones in their order across the lanes. A drone joins its part where it is
    nearest and first flies to the end that is nearer, then to the other: all it flies twice is
    the straight way back from that end.
    """
    along, across = sweep.split(place[:, 0], place[:, 1])
    part = jnp.argsort(jnp.argsort(across)).astype(jnp.int32)
    begin = part * sweep.part_length
    end = begin + sweep.part_length
    distance = jnp.sum(jnp.abs(jnp.stack([sweep.place(begin), sweep.place(end)]) - place), axis=-1)
    heading = jnp.where(distance[1] < distance[0], 1.0, -1.0)
    # Less a metre, for a part that ends with its lane.
    first, last = jnp.floor(begin / sweep.length), jnp.floor((end - 1.0) / sweep.length)
    order = sweep.order(along, jnp.clip(sweep.lane(across), first, last))
    return LanesState(common, part, heading, jnp.clip(order, begin, end))


def next_on_lane(
    sweep: Sweep, open_cells: jax.Array, hidden_state: LanesState
) -> tuple[jax.Array, LanesState]:
    """The first open cell ahead on every drone's part; with none ahead, the drone turns round.

    Args:
      sweep: the boustrophedon.
      open_cells: [H, W] bool.
      hidden_state: parts, headings and progress.

    Returns:
      Row and column [N, 2] int32, -1 where the part is done; and the hidden state after turning.
    """
    y, x = cell_centres(sweep.config)
    along, across = sweep.split(x, y)
    order = sweep.order(along, sweep.lane(across))
    part_of = jnp.where(open_cells, jnp.floor(order / sweep.part_length), -1.0)
    whole = sweep.lanes * sweep.length

    def first(_: None, drone: tuple) -> tuple[None, tuple]:
        part, heading, progress = drone
        ahead = heading * (order - progress)
        # All that lies ahead comes before all that lies behind, which counts from the other end.
        cost = jnp.where(ahead >= 0, ahead, 3 * whole - heading * order)
        goal = argmin_cell(jnp.where(part_of == part, cost, jnp.inf))
        turn = (goal[0] >= 0) & (cost[goal[0], goal[1]] > whole)
        far_end = (part + (heading > 0)) * sweep.part_length
        return None, (goal, jnp.where(turn, -heading, heading), jnp.where(turn, far_end, progress))

    drones = (hidden_state.part, hidden_state.heading, hidden_state.progress)
    _, (goal, heading, progress) = jax.lax.scan(first, None, drones)
    return goal, replace(hidden_state, heading=heading, progress=progress)


def along_lane(
    sweep: Sweep, state: State, goal: jax.Array, hidden_state: LanesState
) -> tuple[jax.Array, LanesState]:
    """Where to fly on the lane's centre to see the goals [N, 2]: places [N, 2] in metres, and the
    hidden_state with what the drones have passed."""
    config = sweep.config
    goal_along, goal_across = sweep.split(*goal_place(goal, config).T)
    along, across = sweep.split(state.position[:, 0], state.position[:, 1])
    lane = sweep.lane(goal_across)
    centre = jnp.clip(sweep.centre(lane), goal_across - sweep.radius, goal_across + sweep.radius)
    # What lies beside the drone on its lane is passed; a cell missed there waits for the way back.
    own, target = (hidden_state.heading * sweep.order(c, lane) for c in (along, goal_along))
    passed = jnp.maximum(hidden_state.heading * hidden_state.progress, jnp.minimum(own, target))
    on_lane = (sweep.lane(across) == lane) & (goal[:, 0] >= 0)
    progress = jnp.where(on_lane, hidden_state.heading * passed, hidden_state.progress)
    # A drone beside its lane first flies onto it, unless it is on the way around a cylinder.
    beside = sweep.join(along, centre)
    off = jnp.abs(across - centre) > OFF_LANE * config.cell_size
    off &= ~near_cylinder(state, beside, config)
    place = jnp.where(off[:, None], beside, sweep.join(goal_along, centre))
    return place, replace(hidden_state, progress=progress)


def near_cylinder(state: State, place: jax.Array, config: EnvConfig) -> jax.Array:
    """Whether places [N, 2] lie in a no-fly cylinder that reaches above the drone, or within its
    `berth` and half a cell."""
    margin = berth(config) + config.cell_size / 2
    inside = jnp.zeros(place.shape[0], bool)
    for cylinder in state.city.no_fly:
        offset = place - cylinder[:2]
        near = jnp.sum(offset**2, axis=-1) < (cylinder[2] + margin) ** 2
        inside |= near & (state.position[:, 2] < cylinder[3])
    return inside
