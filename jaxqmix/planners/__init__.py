"""Scripted baselines: they know the true state, and a learned policy has to beat them.

`random` draws among the available actions. The others give every drone a goal (`pursuit`).

`greedy` heads for the nearest unseen cell by the move that sees most on the way. `voronoi` does the
same within the cells nearest to the drone, and helps elsewhere when these are done. `lanes` cuts
one long boustrophedon over the city into equal parts, one per drone, and helps elsewhere when its
part is done. `tours` gives every drone a path over tiles from where it is, makes the longest short
by local search, and does so again from time to time.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxqmix.config import ConfigError, EnvConfig
from jaxqmix.planners.lanes import Lanes
from jaxqmix.planners.pursuit import (
    FRESH,
    PursuitState,
    cells_to_see,
    goal_place,
    goal_radius,
    initial_hidden_state,
    nearest_cells,
    pursue,
)
from jaxqmix.planners.tours import Tours
from jaxqmix.types import Policy, State, Timestep

PLANNERS = ("random", "greedy", "voronoi", "lanes", "tours")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Random:
    """Uniform among the available actions."""

    def initial_hidden_state(self) -> tuple:
        """Nothing."""
        return ()

    def __call__(self, key: jax.Array, state: State, timestep: Timestep, hidden_state: tuple):
        """Actions [N] int32 and the empty hidden state; see `Policy`."""
        scores = jax.random.uniform(key, timestep.observation.available.shape)
        scores = jnp.where(timestep.observation.available, scores, -1.0)
        return jnp.argmax(scores, axis=-1).astype(jnp.int32), hidden_state


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Greedy:
    """The nearest unseen cell; with `territory`, first those nearer to no teammate."""

    config: EnvConfig
    territory: bool = False

    def initial_hidden_state(self) -> PursuitState:
        """No goals yet."""
        return initial_hidden_state(self.config)

    def __call__(
        self, key: jax.Array, state: State, timestep: Timestep, hidden_state: PursuitState
    ):
        """Actions [N] int32 and the new hidden state; see `Policy`."""
        radius = goal_radius(timestep, self.config)
        open_cells = cells_to_see(state, hidden_state, self.config)
        goal = nearest_cells(state, open_cells, hidden_state, radius, self.territory, self.config)
        place = goal_place(goal, self.config)
        return pursue(
            state,
            timestep.observation.available,
            goal,
            place,
            hidden_state,
            radius,
            FRESH,
            self.config,
        )


def planner(name: str, config: EnvConfig) -> Policy:
    """The scripted baseline called `name`, for worlds of `config`.

    Raises:
      ConfigError: there is none of this name.
    """
    if name not in PLANNERS:
        raise ConfigError(f"planner = {name} is not allowed: must be one of {PLANNERS}")
    if name == "random":
        return Random()
    if name == "lanes":
        return Lanes(config)
    if name == "tours":
        return Tours(config)
    return Greedy(config, territory=name == "voronoi")
