"""Temporal-difference targets: pure array functions, time in front."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def masked_max(values: jax.Array, available: jax.Array) -> jax.Array:
    """The largest available value [...] from values and a mask [..., A]."""
    chex.assert_equal_shape([values, available])
    return jnp.max(jnp.where(available, values, -jnp.inf), axis=-1)


def chosen_values(values: jax.Array, actions: jax.Array) -> jax.Array:
    """Values [...] of the chosen actions [...] from values [..., A]."""
    chex.assert_equal_shape_prefix([values, actions], actions.ndim)
    return jnp.take_along_axis(values, actions[..., None], axis=-1)[..., 0]


def lambda_returns(
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    next_value: jax.Array,
    gamma: float,
    trace: float,
) -> jax.Array:
    """Lambda-returns that bootstrap through a time limit and not through the end of a mission.

        G_t = r_t                                                    if terminated
        G_t = r_t + gamma V_{t+1}                                    if truncated, or at the last t
        G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1})    else

    Peng & Williams 1996, "Incremental multi-step Q-learning"; online use as in Gallici et al. 2024
    (PQN), section 4. lambda = 0 gives the one-step target.

    Args:
      reward: [T, S].
      terminated: [T, S] bool.
      truncated: [T, S] bool.
      next_value: [T, S, M], value of the observation after step t, before any reset.
      gamma: discount.
      trace: lambda.

    Returns:
      [T, S, M].

    Raises:
      AssertionError: on shapes or types that do not fit.
    """
    chex.assert_rank([reward, terminated, truncated, next_value], [2, 2, 2, 3])
    chex.assert_equal_shape([reward, terminated, truncated])
    chex.assert_equal_shape_prefix([reward, next_value], 2)
    chex.assert_type([terminated, truncated], bool)

    def backward(later: jax.Array, step: tuple) -> tuple[jax.Array, jax.Array]:
        reward, terminated, truncated, value = step
        mixed = jnp.where(truncated, value, (1 - trace) * value + trace * later)
        target = reward + jnp.where(terminated, 0.0, gamma * mixed)
        return target, target

    steps = (reward[..., None], terminated[..., None], truncated[..., None], next_value)
    _, targets = jax.lax.scan(backward, next_value[-1], steps, reverse=True)
    return targets
