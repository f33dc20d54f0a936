"""From the drones' values to the team's, in training only: QMIX, QPLEX, VDN, independent learning.

A new mixer is one `Mixer` and one entry of `MIXERS`, with its name in `LearnerConfig.mixer`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxqmix.config import LearnerConfig
from jaxqmix.learner.networks import Parameters


class Mixer(nnx.Module):
    """What the learner knows of a mixer: how it is built, and how it is called.

    A module, for then its weights are found, split off and saved like the agent's, and a mixer
    without weights needs no `__init__`. Its arguments are all that the published value
    decompositions look at: QMIX, VDN and IQL need the values of the chosen actions alone; a dueling
    mixer also needs the best values, for the advantages, and the joint action.
    """

    def __init__(
        self, config: LearnerConfig, drones: int, actions: int, state: int, rngs: nnx.Rngs
    ):
        """Fresh weights for N drones with A actions each, and a state of S numbers."""

    def __call__(
        self, chosen: jax.Array, best: jax.Array, actions: jax.Array, state: jax.Array
    ) -> jax.Array:
        """The team's value, or values.

        Args:
          chosen: [..., N], each drone's value of its chosen action.
          best: [..., N], its value of the best available action; `chosen` is never above.
          actions: [..., N] int, the chosen actions.
          state: [..., S], of the whole swarm.

        Returns:
          [..., M], with M = 1 value of the team, or M = N values that are learned separately.
        """
        raise NotImplementedError


class AdditiveMixer(Mixer):
    """VDN: the sum (Sunehag et al. 2018, "Value-Decomposition Networks")."""

    def __call__(
        self, chosen: jax.Array, best: jax.Array, actions: jax.Array, state: jax.Array
    ) -> jax.Array:
        """Team value [..., 1]."""
        return chosen.sum(axis=-1, keepdims=True)


class IndependentMixer(Mixer):
    """IQL: each drone's value is the team's (Tan 1993, "Multi-Agent Reinforcement Learning")."""

    def __call__(
        self, chosen: jax.Array, best: jax.Array, actions: jax.Array, state: jax.Array
    ) -> jax.Array:
        """Values [..., N]."""
        return chosen


def near(value: float) -> dict[str, Any]:
    """Initialisers of a layer whose outputs begin about `value`, from half to one and a half."""
    return {
        "kernel_init": nnx.initializers.variance_scaling(0.01, "fan_in", "normal"),
        "bias_init": lambda key, shape, dtype=jnp.float32: (
            jax.random.uniform(key, shape, dtype, 0.5, 1.5) * value
        ),
    }


class MonotonicMixer(Mixer):
    """The QMIX mixing network (Rashid et al. 2018, section 4 and figure 2).

    Hypernetworks turn the global state into the weights of a two-layer network over the drones'
    values; absolute weights keep the team's value monotonic in each of them.

    The weights begin near 1 / sqrt(width), so that the team's value begins near the sum of the
    drones' (VDN), whatever the number of drones: with the usual initialisation it begins several
    times as large, and the first gradients hundreds of times.
    """

    def __init__(
        self, config: LearnerConfig, drones: int, actions: int, state: int, rngs: nnx.Rngs
    ):
        width = config.mixing_width
        self.drones, self.width = drones, width
        self.weight_1 = nnx.Linear(state, drones * width, rngs=rngs, **near(width**-0.5))
        self.bias_1 = nnx.Linear(state, width, rngs=rngs)
        self.weight_2 = nnx.Linear(state, width, rngs=rngs, **near(width**-0.5))
        self.bias_2_hidden = nnx.Linear(state, width, rngs=rngs)
        self.bias_2 = nnx.Linear(width, 1, rngs=rngs)

    def __call__(
        self, chosen: jax.Array, best: jax.Array, actions: jax.Array, state: jax.Array
    ) -> jax.Array:
        """Team value [..., 1]."""
        weight_1 = jnp.abs(self.weight_1(state)).reshape(*state.shape[:-1], self.drones, self.width)
        weight_2 = jnp.abs(self.weight_2(state))
        mixed = jnp.sum(chosen[..., None] * weight_1, axis=-2)
        hidden = nnx.elu(mixed + self.bias_1(state))
        bias_2 = self.bias_2(nnx.relu(self.bias_2_hidden(state)))
        return jnp.sum(hidden * weight_2, axis=-1, keepdims=True) + bias_2


class DuplexDuelingMixer(Mixer):
    """The QPLEX mixing network (Wang et al. 2021, "QPLEX: Duplex Dueling Multi-Agent Q-Learning",
    sections 3.1 and 3.2).

    With V_i the best and Q_i the chosen value of drone i, and A_i = Q_i - V_i, never above 0:

        Q_tot = V_tot + A_tot
        V_tot = sum_i w_i(s) V_i + b(s)              A_tot = sum_i lambda_i(s, a) w_i(s) A_i

    As w_i and lambda_i are positive, the drones' own best actions are the team's (IGM), and as
    lambda_i sees the joint action a, every other joint action may be worth anything less.
    `b` is the sum of the paper's b_i, which drop out of A_i.

    lambda_i is e to the power of a network's output, where the paper sums over attention heads: a
    head whose key meets zero learns no more, and this one learns the payoffs of the matrix game in
    `tests/test_learner.py`. w_i and lambda_i begin about 1, so that the team's value begins near
    the sum of the drones'.
    """

    def __init__(
        self, config: LearnerConfig, drones: int, actions: int, state: int, rngs: nnx.Rngs
    ):
        width = config.mixing_width
        self.actions = actions
        self.weight = nnx.Linear(state, drones, rngs=rngs, **near(1.0))
        self.bias_hidden = nnx.Linear(state, width, rngs=rngs)
        self.bias = nnx.Linear(width, 1, rngs=rngs)
        self.importance_hidden = nnx.Linear(state + drones * actions, width, rngs=rngs)
        self.importance_log = nnx.Linear(width, drones, rngs=rngs, **near(0.0))

    def __call__(
        self, chosen: jax.Array, best: jax.Array, actions: jax.Array, state: jax.Array
    ) -> jax.Array:
        """Team value [..., 1]."""
        # Kept from zero: there, every action would be as good as the best.
        weight = jnp.abs(self.weight(state)) + 1e-10
        bias = self.bias(nnx.relu(self.bias_hidden(state)))
        # V_tot + A_tot, in the paper's form for stable training (section 3.2): the drones' values
        # learn as those of a weighted sum, and only lambda learns from their advantages.
        advantage = jax.lax.stop_gradient(weight * (chosen - best))
        importance = self.importance(actions, state)
        team = weight * chosen + (importance - 1) * advantage
        return team.sum(axis=-1, keepdims=True) + bias

    def importance(self, actions: jax.Array, state: jax.Array) -> jax.Array:
        """lambda_i [..., N], from e^-10 to e^10."""
        one_hot = jax.nn.one_hot(actions, self.actions).reshape(*actions.shape[:-1], -1)
        hidden = self.importance_hidden(jnp.concatenate([state, one_hot], axis=-1))
        return jnp.exp(10 * jnp.tanh(self.importance_log(nnx.relu(hidden)) / 10))


MIXERS: dict[str, type[Mixer]] = {
    "qmix": MonotonicMixer,
    "qplex": DuplexDuelingMixer,
    "vdn": AdditiveMixer,
    "iql": IndependentMixer,
}
"""By their names in `LearnerConfig.mixer`."""


@dataclasses.dataclass(frozen=True)
class MixerNetwork:
    """A mixer with its static sizes bound, as functions of its parameters."""

    kind: type[Mixer]
    config: LearnerConfig
    drones: int
    actions: int
    state: int

    def build(self, key: jax.Array) -> Mixer:
        """A module with fresh weights."""
        return self.kind(self.config, self.drones, self.actions, self.state, nnx.Rngs(key))

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """The module without its weights."""
        return nnx.split(nnx.eval_shape(lambda: self.build(jax.random.key(0))))[0]

    def init(self, key: jax.Array) -> Parameters:
        """Fresh parameters."""
        return nnx.to_pure_dict(nnx.state(self.build(key), nnx.Param))

    def module(self, parameters: Parameters) -> Mixer:
        """The module with these weights."""
        return nnx.merge(self.graph, parameters)

    def __call__(
        self,
        parameters: Parameters,
        chosen: jax.Array,
        best: jax.Array,
        actions: jax.Array,
        state: jax.Array,
    ) -> jax.Array:
        """Team values [..., M], as `Mixer.__call__`."""
        return self.module(parameters)(chosen, best, actions, state)


def make_mixer(
    config: LearnerConfig,
    drones: int,
    actions: int,
    state: int,
    kind: type[Mixer] | None = None,
) -> MixerNetwork:
    """The mixer that a config names, or one of another kind."""
    return MixerNetwork(kind or MIXERS[config.mixer], config, drones, actions, state)
