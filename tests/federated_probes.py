"""Sites that learn something known, and compile in a second: what a round does to it is checked."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxqmix.config import RunConfig
from jaxqmix.federated import local, nodes, rounds
from jaxqmix.learner.update import LearnerState
from jaxqmix.training import make_parts
from jaxqmix.types import pytree_dataclass, replace


@pytree_dataclass
class Probe:
    """A site's state, in place of a `TrainState`."""

    learner: LearnerState
    trained: jax.Array  # [] int32, rounds


def begin_site(seed: jax.Array, domain: Any, group: Any) -> Probe:
    """Random weights, as of a real site."""
    weights = group.learner.init(jax.random.key(seed)).parameters
    return Probe(LearnerState(weights, (), weights, (jnp.int32(0),), jnp.int32(0)), jnp.int32(0))


def goal(visibility: Any, size: int) -> Any:
    """Where a site's weights go."""
    return np.cos(np.arange(size) + 1.0) * visibility


def local_training(
    state: Probe, start: Any, domain: Any, work: jax.Array, clock: jax.Array, group: Any
) -> tuple[Probe, jax.Array, dict[str, jax.Array]]:
    """Goes a tenth of the way to the site's goal in each iteration of `work`."""
    flat, _ = ravel_pytree(start)
    update = 0.1 * work * (goal(domain.visibility[0], flat.size) - flat)
    learned = replace(state.learner, parameters=state.learner.parameters | start)
    metrics = {"iterations": work.astype(jnp.float32)}
    return Probe(learned, state.trained + (work > 0)), update, metrics


@functools.cache
def parts(config: RunConfig, axis: None, proximal: float = 0.0) -> tuple:
    """World and learner, traced once for all nodes of a test."""
    return make_parts(config, axis, proximal=proximal)


def use(patch: pytest.MonkeyPatch) -> None:
    """Puts these in the place of real training."""
    patch.setattr(local, "make_parts", parts)
    for module in (rounds, nodes):
        patch.setattr(module, "begin_site", begin_site)
        patch.setattr(module, "local_training", local_training)
