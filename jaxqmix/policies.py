"""Policies of a learner's agent network: exploring in training, greedy in evaluation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxqmix.compilation import standard_promotion
from jaxqmix.config import TrainingConfig
from jaxqmix.learner.networks import AgentApply, Parameters, epsilon_greedy, greedy_actions
from jaxqmix.types import State, Timestep


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedPolicy:
    """A `Policy` that follows the agent network, greedily or exploring.

    A pytree of its parameters, and hashable: jit, vmap and scan take it as an argument, and
    `jax.jit(policy)` compiles it.
    """

    apply: AgentApply
    parameters: Parameters = dataclasses.field(repr=False)  # of the agent
    drones: int
    hidden_state_size: int
    epsilon: jax.Array | None = None

    def initial_hidden_state(self) -> jax.Array:
        """Zeros [N, M]."""
        return jnp.zeros((self.drones, self.hidden_state_size))

    @standard_promotion
    def __call__(
        self, key: jax.Array, state: State, timestep: Timestep, hidden_state: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Actions [N] and the new hidden state [N, M]; only the observation is looked at."""
        observation = timestep.observation
        values, hidden_state = self.apply(self.parameters, observation.agents[None], hidden_state)
        if self.epsilon is None:
            return greedy_actions(values[0], observation.available), hidden_state
        return epsilon_greedy(key, values[0], observation.available, self.epsilon), hidden_state


jax.tree_util.register_dataclass(
    LearnedPolicy,
    data_fields=("parameters", "epsilon"),
    meta_fields=("apply", "drones", "hidden_state_size"),
)


def exploration_rate(env_steps: jax.Array, horizon: int, config: TrainingConfig) -> jax.Array:
    """Epsilon after so many env steps.

    Linear from start to end, or, when a rate per episode is given, geometric with one episode
    taken as `horizon` env steps.
    """
    if config.epsilon_decay_per_episode is not None:
        rate = jnp.float32(config.epsilon_decay_per_episode)
        epsilon = config.epsilon_start * rate ** (env_steps / horizon)
        return jnp.maximum(epsilon, config.epsilon_end)
    share = jnp.clip(env_steps / float(config.epsilon_decay_steps), 0.0, 1.0)
    return config.epsilon_start + share * (config.epsilon_end - config.epsilon_start)
