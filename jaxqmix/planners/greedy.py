"""Baselines that head for what is unseen and near."""

from __future__ import annotations

import dataclasses

import jax

from jaxqmix.config import EnvConfig
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
from jaxqmix.types import State, Timestep


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


def voronoi(config: EnvConfig) -> Greedy:
    """The same within the cells nearest to the drone, first."""
    return Greedy(config, territory=True)
