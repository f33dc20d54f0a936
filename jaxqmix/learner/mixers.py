"""From the drones' values to the team's: QMIX, VDN and independent learning, one signature.

`apply(parameters, values [..., N], state [..., S]) -> [..., M]` with M = 1 team value for QMIX and
VDN, and M = N separate values for independent learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxqmix.config import LearnerConfig
from jaxqmix.learner.networks import Parameters

MixerApply = Callable[[Parameters, jax.Array, jax.Array], jax.Array]


class MonotonicMixer(nnx.Module):
    """The QMIX mixing network (Rashid et al. 2018, section 4 and figure 2).

    Hypernetworks turn the global state into the weights of a two-layer network over the drones'
    values; absolute weights keep the team's value monotonic in each of them.

    The weights begin near 1 / sqrt(width), so that the team's value begins near the sum of the
    drones' (VDN), whatever the number of drones: with the usual initialisation it begins several
    times as large, and the first gradients hundreds of times.
    """

    def __init__(self, drones: int, state: int, width: int, rngs: nnx.Rngs):
        self.drones, self.width = drones, width
        near: dict[str, Any] = {
            "kernel_init": nnx.initializers.variance_scaling(0.01, "fan_in", "normal"),
            "bias_init": lambda key, shape, dtype=jnp.float32: (
                jax.random.uniform(key, shape, dtype, 0.5, 1.5) / width**0.5
            ),
        }
        self.weight_1 = nnx.Linear(state, drones * width, rngs=rngs, **near)
        self.bias_1 = nnx.Linear(state, width, rngs=rngs)
        self.weight_2 = nnx.Linear(state, width, rngs=rngs, **near)
        self.bias_2_hidden = nnx.Linear(state, width, rngs=rngs)
        self.bias_2 = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, values: jax.Array, state: jax.Array) -> jax.Array:
        """Team value [..., 1] from values [..., N] and state [..., S]."""
        weight_1 = jnp.abs(self.weight_1(state)).reshape(*state.shape[:-1], self.drones, self.width)
        weight_2 = jnp.abs(self.weight_2(state))
        mixed = jnp.sum(values[..., None] * weight_1, axis=-2)
        hidden = nnx.elu(mixed + self.bias_1(state))
        bias_2 = self.bias_2(nnx.relu(self.bias_2_hidden(state)))
        return jnp.sum(hidden * weight_2, axis=-1, keepdims=True) + bias_2


def make_mixer(
    config: LearnerConfig, drones: int, state: int
) -> tuple[Callable[[jax.Array], Parameters], MixerApply]:
    """Binds the static sizes; returns `init(key)` and `apply(parameters, values, state)`."""
    if config.mixer == "vdn":
        return lambda key: {}, lambda parameters, values, state: values.sum(-1, keepdims=True)
    if config.mixer == "iql":
        return lambda key: {}, lambda parameters, values, state: values

    def build(key: jax.Array) -> MonotonicMixer:
        return MonotonicMixer(drones, state, config.mixing_width, nnx.Rngs(key))

    graph, _ = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def init(key: jax.Array) -> Parameters:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(parameters: Parameters, values: jax.Array, state: jax.Array) -> jax.Array:
        return nnx.merge(graph, parameters)(values, state)

    return init, apply
