"""The agent: one network, shared by all drones, from observations to action values.

Flax NNX is used functionally: a module is split once into a static graph definition and a plain
dict of arrays, and every function below the networks sees arrays only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxqmix.config import LEARNER_NUMBERS, LearnerConfig
from jaxqmix.types import Symmetries

Parameters = dict[str, Any]
AgentApply = Callable[[Parameters, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Agent(nnx.Module):
    """LayerNorm MLP with a dueling head, with a GRU before the head in the recurrent variant.

    Dueling head: Wang et al. 2016, "Dueling Network Architectures". Shared parameters: Rashid et
    al. 2018, section 4.
    """

    def __init__(self, config: LearnerConfig, features: int, actions: int, rngs: nnx.Rngs):
        self.layers = config.layers
        width = features
        for index in range(config.layers):
            setattr(self, f"dense_{index}", nnx.Linear(width, config.hidden, rngs=rngs))
            setattr(self, f"norm_{index}", nnx.LayerNorm(config.hidden, rngs=rngs))
            width = config.hidden
        gru = config.network == "gru"
        self.recurrent = nnx.GRUCell(width, width, rngs=rngs) if gru else None
        # Values begin near zero. Begun at their usual size, the best of N drones' noisy values add
        # up: 20 drones then start from a team value several times too high.
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.value = nnx.Linear(width, 1, kernel_init=small, rngs=rngs)
        self.advantage = nnx.Linear(width, actions, kernel_init=small, rngs=rngs)

    def __call__(
        self, observation: jax.Array, hidden_state: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Action values over time.

        Args:
          observation: [T, ..., D].
          hidden_state: [..., M], before the first observation; M = 0 without a recurrent layer.

        Returns:
          Action values [T, ..., A] and the hidden state after the last observation.
        """
        # One long axis of rows: with several, the weights' gradients transpose their inputs first.
        hidden = observation.reshape(-1, observation.shape[-1])
        for index in range(self.layers):
            dense, norm = getattr(self, f"dense_{index}"), getattr(self, f"norm_{index}")
            hidden = nnx.relu(norm(dense(hidden)))
        if self.recurrent is not None:
            over_time = hidden.reshape(*observation.shape[:-1], -1)
            # `GRUCell` returns (hidden_state, output), the order that scan wants.
            hidden_state, over_time = jax.lax.scan(self.recurrent, hidden_state, over_time)
            hidden = over_time.reshape(hidden.shape)
        advantage = self.advantage(hidden)
        values = self.value(hidden) + advantage - advantage.mean(axis=-1, keepdims=True)
        return values.reshape(*observation.shape[:-1], -1), hidden_state


def network_settings(config: LearnerConfig) -> LearnerConfig:
    """The settings with defaults in the places of those that may be traced: networks do not depend
    on them, and equal networks share compiled programs."""
    plain = LearnerConfig()
    numbers = {name: getattr(plain, name) for name in LEARNER_NUMBERS}
    return dataclasses.replace(config, **numbers)


def hidden_state_size(config: LearnerConfig) -> int:
    """Numbers M that an agent carries from step to step."""
    return config.hidden if config.network == "gru" else 0


@dataclasses.dataclass(frozen=True)
class AgentNetwork:
    """`Agent` with its static sizes bound; equal settings make equal networks, so that programs
    compiled for one serve the other."""

    config: LearnerConfig  # of `network_settings`
    features: int
    actions: int

    def build(self, key: jax.Array) -> Agent:
        """A module with fresh weights."""
        return Agent(self.config, self.features, self.actions, nnx.Rngs(key))

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """The module without its weights."""
        return nnx.split(nnx.eval_shape(lambda: self.build(jax.random.key(0))))[0]

    def init(self, key: jax.Array) -> Parameters:
        """Fresh parameters."""
        return nnx.to_pure_dict(nnx.state(self.build(key), nnx.Param))

    def __call__(
        self, parameters: Parameters, observation: jax.Array, hidden_state: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Action values and the new hidden_state, as `Agent.__call__`."""
        return nnx.merge(self.graph, parameters)(observation, hidden_state)


def transformed(parameters: Parameters, symmetries: Symmetries) -> Parameters:
    """The agent turned instead of the world, one for each symmetry: leaves [G, ...].

    `apply` of one of them gives for an observation what `apply(parameters, ...)` gives for the
    turned observation, with the actions turned back.
    """
    first, last = parameters["dense_0"], parameters["advantage"]

    def turn(symmetry: Symmetries) -> Parameters:
        kernel = symmetry.sign[:, None] * first["kernel"]
        kernel = jnp.take(kernel, jnp.argsort(symmetry.source), axis=0)
        bias = first["bias"] + symmetry.offset @ first["kernel"]
        advantage = {n: jnp.take(leaf, symmetry.actions, axis=-1) for n, leaf in last.items()}
        return parameters | {"dense_0": {"kernel": kernel, "bias": bias}, "advantage": advantage}

    return jax.vmap(turn)(symmetries)


@dataclasses.dataclass(frozen=True)
class SymmetryEnsemble:
    """The mean action values of the agents of `transformed`, each with its hidden state.

    Silver et al. 2016, "Mastering the game of Go", Methods, Symmetries: the explicit ensemble.
    """

    agent: AgentApply

    def __call__(
        self, parameters: Parameters, observation: jax.Array, hidden_state: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Takes parameters [G, ...] and hidden state [..., G x M]."""
        agents = jax.vmap(self.agent, in_axes=(0, None, -2), out_axes=(0, -2))
        sides = jax.tree.leaves(parameters)[0].shape[0]
        each = hidden_state.reshape(
            *hidden_state.shape[:-1], sides, hidden_state.shape[-1] // sides
        )
        values, each = agents(parameters, observation, each)
        return values.mean(axis=0), each.reshape(hidden_state.shape)


def greedy_actions(values: jax.Array, available: jax.Array) -> jax.Array:
    """The best available action of each drone, int32 [...], from values and a mask [..., A]."""
    return jnp.argmax(jnp.where(available, values, -jnp.inf), axis=-1).astype(jnp.int32)


def epsilon_greedy(
    key: jax.Array, values: jax.Array, available: jax.Array, epsilon: jax.Array
) -> jax.Array:
    """Epsilon-greedy actions [N]: each drone, with probability epsilon, a uniform available one.

    Args:
      key: consumed once.
      values: [N, A].
      available: [N, A].
      epsilon: [].
    """
    draw = jax.random.uniform(key, (*values.shape[:-1], values.shape[-1] + 1))
    anything = greedy_actions(draw[..., 1:], available)
    return jnp.where(draw[..., 0] < epsilon, anything, greedy_actions(values, available))
