"""The team reward: one function per term, composed by the weights in `EnvParams`.

Every term is what it measures, without sign or weight. Conflicts, hits, violations and moves are
means over drones and the horizon, so that an episode full of one mistake costs its whole weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxqmix.config import COVERAGE_SUCCESS, FOOTPRINT_RADIUS, EnvConfig
from jaxqmix.types import HOVER, Events, RewardWeights


def area_term(newly_seen: jax.Array, coverable: jax.Array) -> jax.Array:
    """Newly seen cells as a share of the coverable ones; sums to 1 over a perfect episode."""
    return newly_seen / jnp.maximum(coverable, 1)


def bonus_term(
    coverage_before: jax.Array, coverage: jax.Array, time: jax.Array, config: EnvConfig
) -> jax.Array:
    """Share of the time left, in the one step that first reaches 90 % coverage."""
    reached = (coverage_before < COVERAGE_SUCCESS) & (coverage >= COVERAGE_SUCCESS)
    return jnp.where(reached, 1.0 - time / config.horizon, 0.0)


def perimeter_term(growth: jax.Array, coverable: jax.Array, config: EnvConfig) -> jax.Array:
    """By how much the unseen area's perimeter grew, times the radius of a footprint at the ground,
    as a share of the coverable area; sums to 0 over a perfect episode.

    A step that leaves a gap behind pays for it at once, and the step that closes it is paid back:
    the total variation reward of Jonnarth, Zhao and Felsberg, "Learning Coverage Paths in Unknown
    Environments with Deep Reinforcement Learning" (ICML 2024).

    Args:
      growth: [], in cell sides; all of the perimeter in the first step of an episode.
      coverable: [], coverable cells of the city.
      config: static sizes.
    """
    return growth * (FOOTPRINT_RADIUS / config.cell_size) / jnp.maximum(coverable, 1)


def conflict_term(events: Events, config: EnvConfig) -> jax.Array:
    """Drones in conflict, as a share of the episode's drone steps."""
    return _share(events.conflict, config)


def building_hit_term(events: Events, config: EnvConfig) -> jax.Array:
    """Drones that strike a building, as a share of the episode's drone steps."""
    return _share(events.building_hit, config)


def violation_term(events: Events, config: EnvConfig) -> jax.Array:
    """Drones that try to enter a no-fly zone, as a share of the episode's drone steps."""
    return _share(events.violation, config)


def energy_term(events: Events, config: EnvConfig) -> jax.Array:
    """Drones that move, as a share of the episode's drone steps."""
    return _share(events.executed != HOVER, config)


def _share(flags: jax.Array, config: EnvConfig) -> jax.Array:
    return jnp.sum(flags, dtype=jnp.float32) / (config.drones * config.horizon)


def team_reward(
    newly_seen: jax.Array,
    growth: jax.Array,
    coverable: jax.Array,
    coverage_before: jax.Array,
    coverage: jax.Array,
    time: jax.Array,
    events: Events,
    weights: RewardWeights,
    config: EnvConfig,
) -> jax.Array:
    """The weighted sum of all terms, a float32 scalar.

    Args:
      newly_seen: [], cells credited in this step.
      growth: [], of the unseen area's perimeter in this step, in cell sides.
      coverable: [], coverable cells of the city.
      coverage_before: [], coverage before the step.
      coverage: [], coverage after it.
      time: [], env steps flown after it.
      events: what happened to each drone.
      weights: one weight per term.
      config: static sizes.
    """
    return (
        weights.area * area_term(newly_seen, coverable)
        + weights.bonus * bonus_term(coverage_before, coverage, time, config)
        - weights.perimeter * perimeter_term(growth, coverable, config)
        - weights.conflict * conflict_term(events, config)
        - weights.building_hit * building_hit_term(events, config)
        - weights.violation * violation_term(events, config)
        - weights.energy * energy_term(events, config)
    )
