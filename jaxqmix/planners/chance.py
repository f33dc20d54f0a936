"""The baseline that any other should beat."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxqmix.config import EnvConfig
from jaxqmix.types import State, Timestep


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Random:
    """Uniform among the available actions, in any world."""

    config: EnvConfig | None = None

    def initial_hidden_state(self) -> tuple:
        """Nothing."""
        return ()

    def __call__(self, key: jax.Array, state: State, timestep: Timestep, hidden_state: tuple):
        """Actions [N] int32 and the empty hidden state; see `Policy`."""
        scores = jax.random.uniform(key, timestep.observation.available.shape)
        scores = jnp.where(timestep.observation.available, scores, -1.0)
        return jnp.argmax(scores, axis=-1).astype(jnp.int32), hidden_state
