"""The mission over a city: see it all. When an episode is complete, and what is counted of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxqmix.config import COVERAGE_SUCCESS, EnvConfig
from jaxqmix.env.city import footprint_radius
from jaxqmix.env.reward import TERMS, Term
from jaxqmix.types import EnvParams, State, Timestep, pytree_dataclass

MISSION_SUCCESS = 0.95
"""Coverage that makes a mission a success, unless it ends earlier."""

METRICS = (
    "collision_rate",
    "collided_drones",
    "violation_rate",
    "coverage",
    "return",
    "mission_reward",
    "t90",
    "mission_success",
)
"""Names of `episode_metrics`, less those of the reward's terms."""
EVALUATED = (*METRICS, "limit")
"""What an evaluation tells of each episode: its metrics, and `fewest_steps` from its start."""


@pytree_dataclass
class EpisodeStatistics:
    """One swarm's episode so far."""

    length: jax.Array  # [] int32, steps flown
    total_reward: jax.Array  # [] float32
    collisions: jax.Array  # [] int32, drone steps in conflict or against a building
    collided: jax.Array  # [N] bool, drones with at least one such step
    violations: jax.Array  # [] int32, drone steps against a no-fly zone
    coverage: jax.Array  # [] float32
    t90: jax.Array  # [] int32, steps until 90 % coverage; the horizon until then
    reward_terms: jax.Array  # [terms] float32, what each added to the reward


def coverage(state: State) -> jax.Array:
    """Seen coverable cells / coverable cells, float32 []."""
    return state.seen / jnp.maximum(state.city.coverable, 1)


def init_statistics(timestep: Timestep, config: EnvConfig) -> EpisodeStatistics:
    """The statistics of an episode after its reset."""
    covered = timestep.metrics["coverage"]
    return EpisodeStatistics(
        length=jnp.int32(0),
        total_reward=jnp.float32(0),
        collisions=jnp.int32(0),
        collided=jnp.zeros(config.drones, bool),
        violations=jnp.int32(0),
        coverage=covered,
        t90=jnp.where(covered >= COVERAGE_SUCCESS, 0, jnp.int32(config.horizon)),
        reward_terms=jnp.zeros_like(timestep.metrics["reward_terms"]),
    )


def update_statistics(
    statistics: EpisodeStatistics, timestep: Timestep, config: EnvConfig
) -> EpisodeStatistics:
    """Adds one step of one swarm."""
    flown = timestep.metrics
    collision = flown["conflict"] | flown["building_hit"]
    length = statistics.length + 1
    first = (flown["coverage"] >= COVERAGE_SUCCESS) & (statistics.t90 >= config.horizon)
    return EpisodeStatistics(
        length=length,
        total_reward=statistics.total_reward + timestep.reward,
        collisions=statistics.collisions + jnp.sum(collision, dtype=jnp.int32),
        collided=statistics.collided | collision,
        violations=statistics.violations + jnp.sum(flown["violation"], dtype=jnp.int32),
        coverage=flown["coverage"],
        t90=jnp.where(first, length, statistics.t90),
        reward_terms=statistics.reward_terms + flown["reward_terms"],
    )


def episode_metrics(
    statistics: EpisodeStatistics, config: EnvConfig, terms: tuple[Term, ...] = TERMS
) -> dict[str, jax.Array]:
    """The metrics of one episode, each a float32 scalar, with `reward_area` and so on for what each
    term added to the return.

    `mission_reward` is the return without the perimeter's cost: area, bonus and penalties. A
    mission succeeds at 95 % coverage, or at its `coverage_target` where that is less.
    """
    added = {term.name: statistics.reward_terms[place] for place, term in enumerate(terms)}
    enough = min(MISSION_SUCCESS, config.coverage_target)
    drone_steps = jnp.maximum(statistics.length * config.drones, 1)
    return {
        "collision_rate": statistics.collisions / drone_steps,
        "collided_drones": jnp.mean(statistics.collided, dtype=jnp.float32),
        "violation_rate": statistics.violations / drone_steps,
        "coverage": statistics.coverage,
        "return": statistics.total_reward,
        "mission_reward": statistics.total_reward - added.get("perimeter", 0.0),
        "t90": statistics.t90.astype(jnp.float32),
        "mission_success": (statistics.coverage >= enough).astype(jnp.float32),
        **{f"reward_{name}": value for name, value in added.items()},
    }


def fewest_steps(
    coverable: jax.Array,
    seen: jax.Array,
    visibility: jax.Array,
    packet_loss: jax.Array,
    config: EnvConfig,
    radius: Callable[..., jax.Array] = footprint_radius,
) -> jax.Array:
    """The limit: env steps to 90 % coverage that no swarm can expect to go below, float32 [].

    t >= (0.9 A - area seen at the start) / (N 2 r v (1 - loss)): N drones at the highest altitude,
    each of which sees a strip of new area as wide as its footprint with every command that arrives.

    Left out, and so the limit is loose: that footprints overlap, with each other and with what is
    seen, reach over the city's edge and see what is not coverable; climbing, turning, ways around
    no-fly zones; and chance, with `probabilistic` sensing. Left out too, and a swarm may gain a
    few per cent by it: wind that carries along, a grid that counts cells by their centres, and
    luck with the link, so that the limit is one of the mean over episodes. It may lie beyond the
    horizon.

    Args:
      coverable: [], coverable cells A.
      seen: [], those seen at the start.
      visibility: [], 0 to 1; it decides the radius r.
      packet_loss: [], probability.
      config: static sizes; v is a cell per step.
      radius: of the sensor.
    """
    cells = jnp.maximum(COVERAGE_SUCCESS * coverable - seen, 0.0)
    reach = radius(jnp.float32(config.top_altitude), visibility)
    # Finite where every command is lost.
    arrive = jnp.maximum(1 - packet_loss, 1e-3)
    return cells / (config.drones * (2 * reach / config.cell_size) * arrive)


@dataclasses.dataclass(frozen=True)
class CoverageMission:
    """See `coverage_target` of what can be seen; the functions above with their sizes bound.

    Another mission is a class with these methods, given as `Parts(mission=...)`.
    """

    config: EnvConfig
    terms: tuple[Term, ...] = TERMS
    radius: Callable[..., jax.Array] = footprint_radius
    """Of the sensor."""
    progress = "coverage"

    @property
    def names(self) -> tuple[str, ...]:
        """Of `metrics`."""
        return (*METRICS, *(f"reward_{term.name}" for term in self.terms))

    def complete(self, state: State) -> jax.Array:
        """Whether the mission is complete, bool []."""
        return coverage(state) >= self.config.coverage_target

    def init(self, timestep: Timestep) -> EpisodeStatistics:
        """The statistics after a reset."""
        return init_statistics(timestep, self.config)

    def update(
        self,
        statistics: EpisodeStatistics,
        before: State,
        after: State,
        timestep: Timestep,
        params: EnvParams,
    ) -> EpisodeStatistics:
        """Counts one step."""
        return update_statistics(statistics, timestep, self.config)

    def metrics(self, statistics: EpisodeStatistics) -> dict[str, jax.Array]:
        """See `episode_metrics`."""
        return episode_metrics(statistics, self.config, self.terms)

    def bounds(self, state: State, params: EnvParams) -> dict[str, jax.Array]:
        """The `limit` that `fewest_steps` gives from the start."""
        seen, city = state.seen, state.city
        limit = fewest_steps(
            *(city.coverable, seen, params.visibility, params.packet_loss),
            self.config,
            self.radius,
        )
        return {"limit": limit}
