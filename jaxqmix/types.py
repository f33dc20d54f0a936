"""The records that flow between layers: frozen dataclasses registered as pytrees.

Axes: B swarms, T time, N drones, A actions, H x W cells (row = y, column = x), K no-fly zones,
D observation features, S state features, G symmetries. A record describes ONE swarm; `jax.vmap`
adds B in front and `jax.lax.scan` adds T.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import replace as replace
from typing import Any, Protocol, TypeVar, dataclass_transform

import jax
import numpy as np

from jaxqmix.documentation import documented

T = TypeVar("T")
Array = jax.Array | np.ndarray
"""Of a record's arrays once they are back on the host, as pictures and files take them."""


@dataclass_transform(frozen_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass whose fields are all pytree leaves or subtrees."""
    return documented(jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls)))


# The actions, in the order of the action axis A. All that depends on them follows from these four.
NORTH, SOUTH, WEST, EAST, ASCEND, DESCEND, HOVER = range(7)
HEADINGS = 4
"""The first so many actions are the horizontal moves."""
ACTIONS = ("north", "south", "west", "east", "ascend", "descend", "hover")
DIRECTIONS = np.array(
    [(0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, -1), (0, 0, 0)]
)
"""What each action [A, 3] adds to x, y (cells) and altitude (climbs); y grows to the south."""

# What stands in the way of a move, as coded in `State.obstruction`.
FREE, BUILDING, NO_FLY, BORDER = range(4)

# What happened to a command on its way, as coded in `State.link`.
RECEIVED, LOST, DELAYED = range(3)


@pytree_dataclass
class RewardWeights:
    """Reward weights, each a float32 scalar; see `jaxqmix.config.RewardConfig`."""

    area: jax.Array
    bonus: jax.Array
    perimeter: jax.Array
    conflict: jax.Array
    building_hit: jax.Array
    violation: jax.Array
    energy: jax.Array


@pytree_dataclass
class EnvParams:
    """What may vary between swarms without recompiling; float32 scalars."""

    building_density: jax.Array  # [] multiplies the share of built cells
    building_height: jax.Array  # [] multiplies building heights
    wind: jax.Array  # [2] steady wind along x and y, m/s
    turbulence: jax.Array  # [] standard deviation of drift per step, m
    visibility: jax.Array  # [] 0 to 1
    packet_loss: jax.Array  # [] probability
    delay: jax.Array  # [] probability
    sensor_noise: jax.Array  # [] standard deviation of observed positions, m
    reward: RewardWeights


@pytree_dataclass
class City:
    """A city; constant during an episode."""

    heights: jax.Array  # [H, W] uint8, building height, whole metres; 0 is open ground
    no_fly: jax.Array  # [K, 4] float32, cylinder: x, y, radius, ceiling, m
    coverable: jax.Array  # [] int32, number of coverable cells


@pytree_dataclass
class Unseen:
    """Coverable cells not yet seen, and their counts in coarse blocks.

    Both are padded, so that no window around a drone leaves the array (see `env/sensing.py`).
    """

    words: jax.Array  # [H + padding, words] uint32, one bit per cell, least significant first
    coarse: tuple[jax.Array, ...]  # int32 counts per block of 16, 64, ... cells a side


@pytree_dataclass
class State:
    """All of one swarm's world."""

    city: City
    unseen: Unseen
    position: jax.Array  # [N, 3] float32, x, y, altitude, m
    last_action: jax.Array  # [N] int32, executed in the last step
    link: jax.Array  # [N] int32, RECEIVED, LOST or DELAYED
    obstruction: jax.Array  # [N, A] int32, what blocks each action from here; FREE if nothing
    time: jax.Array  # [] int32, env steps flown
    seen: jax.Array  # [] int32, coverable cells seen so far
    perimeter: jax.Array  # [] int32, sides between unseen cells and others


@pytree_dataclass
class Events:
    """What happened to each drone in one step; [N] bool unless said otherwise."""

    executed: jax.Array  # [N] int32, the action that arrived
    conflict: jax.Array  # too close to another drone at the end or middle of the move
    building_hit: jax.Array  # the move was blocked by a building
    violation: jax.Array  # the move was blocked by a no-fly zone
    border: jax.Array  # the move was blocked by the border or an altitude limit


@pytree_dataclass
class Observation:
    """What the agents and the mixer see."""

    agents: jax.Array  # [N, D] float32
    available: jax.Array  # [N, A] bool, see `dynamics.available_actions`
    state: jax.Array  # [S] float32, for the mixer only


@pytree_dataclass
class Symmetries:
    """What turning or mirroring the world does to what an agent sees (see `env/symmetry.py`).

    The turned observation is `sign * observation[source] + offset`; action a becomes `actions[a]`.
    """

    source: Array  # [G, D] int
    sign: Array  # [G, D] float32, 1 or -1
    offset: Array  # [G, D] float32
    actions: Array  # [G, A] int


@pytree_dataclass
class Timestep:
    """The outcome of a reset or a step."""

    observation: Observation
    reward: jax.Array  # [] float32, team reward of the step
    terminated: jax.Array  # [] bool, the mission is complete
    truncated: jax.Array  # [] bool, the time limit is reached and the mission is not complete
    metrics: dict[str, jax.Array]  # of the world; `UrbanGrid`: see `UrbanGrid.step`


def events_of(timestep: Timestep) -> Events:
    """What happened to each drone, from a timestep of `UrbanGrid`."""
    return Events(**{f.name: timestep.metrics[f.name] for f in dataclasses.fields(Events)})


class Policy(Protocol):
    """Chooses actions for ONE swarm; learned policies and scripted planners look the same."""

    def initial_hidden_state(self) -> Any:
        """What the policy carries from step to step at the start of an episode; () for nothing."""
        ...

    def __call__(
        self, key: jax.Array, state: State, timestep: Timestep, hidden_state: Any
    ) -> tuple[jax.Array, Any]:
        """Actions [N] int32, all available, and the new hidden state."""
        ...


@pytree_dataclass
class Sequences:
    """What a rollout hands to the learner: T steps of S sequences.

    An episode ends at most once in a sequence; the steps after its end are not `valid`.
    Observations have one entry more than steps, so every step has its next observation, also
    the last one before a time limit.
    """

    observation: Observation  # [T + 1, S, ...]
    actions: jax.Array  # [T, S, N] int32, commands
    reward: jax.Array  # [T, S] float32
    terminated: jax.Array  # [T, S] bool
    truncated: jax.Array  # [T, S] bool
    valid: jax.Array  # [T, S] bool
    hidden_state: Any  # [S, ...], the policy's before the first observation; QMIX: [S, N, M]
    kept: Any = ()  # [T, S, ...], what the policy keeps of a step, see `jaxqmix.learner.base`


def over_sequences(function: Callable[..., jax.Array], batch: Sequences) -> Sequences:
    """Applies `function(array, axis)` to every array and its axis of sequences S."""
    return Sequences(
        **{
            name: jax.tree.map(
                functools.partial(function, axis=0 if name == "hidden_state" else 1), part
            )
            for name, part in vars(batch).items()
        }
    )


@pytree_dataclass
class Episode:
    """One flown episode, recorded; the last axis names of `Timestep` with time in front.

    Entries after `length` steps are padding: positions, radii and coverage repeat the last, and the
    rest is zero.
    """

    heights: jax.Array  # [H, W] uint8, m
    no_fly: jax.Array  # [K, 4] float32: x, y, radius, ceiling, m
    coverable: jax.Array  # [H, W] bool
    seen_at: jax.Array  # [H, W] int32, env step after which a cell is seen; 0 at reset, -1 never
    positions: jax.Array  # [T + 1, N, 3] float32, m
    radii: jax.Array  # [T + 1, N] float32, footprint radius, m
    actions: jax.Array  # [T, N] int32, commands
    link: jax.Array  # [T, N] int32, RECEIVED, LOST or DELAYED
    events: Events  # [T, N] each
    reward: jax.Array  # [T] float32
    coverage: jax.Array  # [T + 1] float32, at reset and after every step
    length: jax.Array  # [] int32, steps flown
    wind: jax.Array  # [2] float32, m/s
    visibility: jax.Array  # [] float32
