"""Records a flight over a city: everything that pictures, replays and flight files need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix.config import COVERAGE_SUCCESS, EnvConfig
from jaxqmix.env.city import coverable_cells, footprint_radius
from jaxqmix.env.mission import coverage
from jaxqmix.env.sensing import unpack_unseen
from jaxqmix.types import EnvParams, Episode, State, Timestep, events_of, pytree_dataclass


@pytree_dataclass
class Watched:
    """What is carried from step to step."""

    coverable: jax.Array  # [H, W] bool
    seen_at: jax.Array  # [H, W] int32, see `Episode`
    position: jax.Array  # [N, 3] float32, metres; of the last step flown
    coverage: jax.Array  # [] float32, after it


@dataclasses.dataclass(frozen=True)
class FlightRecorder:
    """Makes the `Episode` of one swarm; see `jaxqmix.env.base.Recorder`."""

    config: EnvConfig
    radius: Callable[..., jax.Array] = footprint_radius
    """Of the sensor."""

    def init(self, state: State, params: EnvParams) -> Watched:
        """After the reset."""
        coverable = coverable_cells(state.city.no_fly, params.visibility, self.config, self.radius)
        seen = coverable & ~unpack_unseen(state.unseen, self.config)
        return Watched(coverable, jnp.where(seen, 0, -1), state.position, coverage(state))

    def update(
        self,
        carry: Watched,
        done: jax.Array,
        state: State,
        params: EnvParams,
        timestep: Timestep,
        actions: jax.Array,
    ) -> tuple[Watched, tuple]:
        """One step; of an episode that was over before, place and coverage repeat the last."""
        seen = carry.coverable & ~unpack_unseen(state.unseen, self.config) & (carry.seen_at < 0)
        seen_at = jnp.where(seen & ~done, state.time, carry.seen_at)
        position = jnp.where(done, carry.position, state.position)
        covered = jnp.where(done, carry.coverage, timestep.metrics["coverage"])
        radius = self.radius(position[:, 2], params.visibility)
        flown = jax.tree.map(
            lambda value: jnp.where(done, 0, value).astype(value.dtype),
            (actions, state.link, events_of(timestep), timestep.reward),
        )
        carry = Watched(carry.coverable, seen_at, position, covered)
        return carry, (position, radius, covered, *flown)

    def finish(
        self,
        start: State,
        params: EnvParams,
        carry: Watched,
        steps: Any,
        length: jax.Array,
    ) -> Episode:
        """The episode."""
        position, radius, covered, actions, link, events, reward = steps
        first = self.radius(start.position[:, 2], params.visibility)
        return Episode(
            heights=start.city.heights,
            no_fly=start.city.no_fly,
            coverable=carry.coverable,
            seen_at=carry.seen_at,
            positions=jnp.concatenate([start.position[None], position]),
            radii=jnp.concatenate([first[None], radius]),
            actions=actions,
            link=link,
            events=events,
            reward=reward,
            coverage=jnp.concatenate([coverage(start)[None], covered]),
            length=length,
            wind=params.wind,
            visibility=params.visibility,
        )


def trajectories(episodes: Episode, config: EnvConfig) -> dict[str, Any]:
    """Recorded episodes as named arrays, E in front, enough to recompute every metric."""
    events, steps = episodes.events, np.arange(episodes.reward.shape[1])
    flown = steps < np.asarray(episodes.length)[:, None]
    reached = np.asarray(episodes.coverage) >= COVERAGE_SUCCESS
    t90 = np.where(reached.any(axis=1), reached.argmax(axis=1), config.horizon)
    return {
        "cell_size": np.float32(config.cell_size),
        "heights": episodes.heights,
        "no_fly": episodes.no_fly,
        "coverable": episodes.coverable,
        "seen": np.asarray(episodes.seen_at) >= 0,
        "seen_at": episodes.seen_at,
        "positions": episodes.positions,
        "radii": episodes.radii,
        "actions": episodes.actions,
        "executed": events.executed,
        "conflict": events.conflict,
        "building_hit": events.building_hit,
        "violation": events.violation,
        "reward": episodes.reward,
        "length": episodes.length,
        "coverage": np.asarray(episodes.coverage)[:, -1],
        "return": np.where(flown, episodes.reward, 0).sum(axis=1, dtype=np.float32),
        "t90": t90.astype(np.int32),
    }
