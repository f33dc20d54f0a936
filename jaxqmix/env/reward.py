"""The team reward: a table of terms, each with a function, a sign and a weight.

A term is what it measures, without sign or weight. Conflicts, hits, violations and moves are means
over drones and the horizon, so that an episode full of one mistake costs its whole weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix.config import COVERAGE_SUCCESS, FOOTPRINT_RADIUS, EnvConfig, require
from jaxqmix.types import HOVER, Events, RewardWeights, pytree_dataclass


@pytree_dataclass
class Transition:
    """What a term may look at: one step of one swarm."""

    before: Any  # the `State` before the step
    after: Any  # and after it
    events: Events
    newly_seen: jax.Array  # [] int32, cells credited in this step
    perimeter_change: jax.Array  # [] int32, of the unseen area, in cell sides; all of it at first
    coverage_before: jax.Array  # [] float32
    coverage: jax.Array  # [] float32
    coverable: jax.Array  # [] int32, cells of the city
    time: jax.Array  # [] int32, env steps flown after it


def area_term(step: Transition, config: EnvConfig) -> jax.Array:
    """Newly seen cells as a share of the coverable ones; sums to 1 over a perfect episode."""
    return step.newly_seen / jnp.maximum(step.coverable, 1)


def bonus_term(step: Transition, config: EnvConfig) -> jax.Array:
    """Share of the time left, in the one step that first reaches 90 % coverage."""
    reached = (step.coverage_before < COVERAGE_SUCCESS) & (step.coverage >= COVERAGE_SUCCESS)
    return jnp.where(reached, 1.0 - step.time / config.horizon, 0.0)


def perimeter_term(step: Transition, config: EnvConfig) -> jax.Array:
    """By how much the unseen area's perimeter grew, times the radius of a footprint at the ground,
    as a share of the coverable area; sums to 0 over a perfect episode.

    A step that leaves a gap behind pays for it at once, and the step that closes it is paid back:
    the total variation reward of Jonnarth, Zhao and Felsberg, "Learning Coverage Paths in Unknown
    Environments with Deep Reinforcement Learning" (ICML 2024).
    """
    radius = FOOTPRINT_RADIUS / config.cell_size
    return step.perimeter_change * radius / jnp.maximum(step.coverable, 1)


def conflict_term(step: Transition, config: EnvConfig) -> jax.Array:
    """Drones in conflict, as a share of the episode's drone steps."""
    return share_of_drone_steps(step.events.conflict, config)


def building_hit_term(step: Transition, config: EnvConfig) -> jax.Array:
    """Drones that strike a building, as a share of the episode's drone steps."""
    return share_of_drone_steps(step.events.building_hit, config)


def violation_term(step: Transition, config: EnvConfig) -> jax.Array:
    """Drones that try to enter a no-fly zone, as a share of the episode's drone steps."""
    return share_of_drone_steps(step.events.violation, config)


def energy_term(step: Transition, config: EnvConfig) -> jax.Array:
    """Drones that move, as a share of the episode's drone steps."""
    return share_of_drone_steps(step.events.executed != HOVER, config)


def share_of_drone_steps(flags: jax.Array, config: EnvConfig) -> jax.Array:
    """How many of the drones [N] are flagged, over the drone steps of a whole episode."""
    return jnp.sum(flags, dtype=jnp.float32) / (config.drones * config.horizon)


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the reward."""

    name: str
    measure: Callable[[Transition, EnvConfig], jax.Array]
    """From a step of one swarm to a float32 scalar."""
    sign: int
    """1 for a gain, -1 for a cost."""
    weight: float | None = None
    """None: the one of this name in `RewardWeights`, which is drawn with the world."""


TERMS = (
    Term("area", area_term, 1),
    Term("bonus", bonus_term, 1),
    Term("perimeter", perimeter_term, -1),
    Term("conflict", conflict_term, -1),
    Term("building_hit", building_hit_term, -1),
    Term("violation", violation_term, -1),
    Term("energy", energy_term, -1),
)
"""The terms of `UrbanGrid`; it takes others too: `Parts(terms=(*TERMS, Term(...)))`."""


def team_reward(
    step: Transition,
    weights: RewardWeights,
    config: EnvConfig,
    terms: tuple[Term, ...] = TERMS,
) -> tuple[jax.Array, jax.Array]:
    """The reward of a step, a float32 scalar, and what each term adds to it, float32 [terms]."""
    parts = []
    for term in terms:
        known = term.weight is not None or hasattr(weights, term.name)
        require(
            known, f"terms: weight of {term.name}", None, "must be given for a term of one's own"
        )
        weight = getattr(weights, term.name) if term.weight is None else term.weight
        parts.append(term.sign * (weight * term.measure(step, config)))
    return sum(parts[1:], parts[0]), jnp.stack(parts)
