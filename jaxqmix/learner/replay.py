"""Uniform replay on the device: a ring of sequences, each observation stored once.

Observations and agents' hidden states are kept as float16: their floats are of order one. What
another learner keeps of a step stays as it is.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix.types import Sequences, over_sequences, pytree_dataclass, replace

STORED = jnp.float16


@pytree_dataclass
class Replay:
    """A ring of C sequences; over several devices, each has its share of the ring."""

    data: Sequences  # sequence axis in front: [C, T, ...]
    position: jax.Array  # [] int32, where this device's next sequence goes
    size: jax.Array  # [] int32, sequences stored on this device


def empty(example: Sequences, capacity: int) -> Replay:
    """An empty ring for sequences like `example` ([T, S, ...], or its shapes)."""

    def room(value: Any, axis: int) -> jax.Array:
        shape = (capacity, *value.shape[:axis], *value.shape[axis + 1 :])
        dtype = STORED if value.dtype == jnp.float32 and len(value.shape) > 2 else value.dtype
        return jnp.zeros(shape, dtype)

    data = over_sequences(room, example)
    # Exactly as it was: it is the learner's own, and may be a log-probability.
    kept = jax.tree.map(
        lambda leaf: jnp.zeros((capacity, leaf.shape[0], *leaf.shape[2:]), leaf.dtype), example.kept
    )
    return Replay(replace(data, kept=kept), jnp.int32(0), jnp.int32(0))


def add(replay: Replay, sequences: Sequences) -> Replay:
    """Stores S sequences [T, S, ...], over the oldest ones when full."""
    incoming = over_sequences(lambda value, axis: jnp.moveaxis(value, axis, 0), sequences)
    count = sequences.reward.shape[1]
    capacity = replay.data.reward.shape[0]
    places = (replay.position + jnp.arange(count)) % capacity

    def store(ring: jax.Array, value: jax.Array) -> jax.Array:
        return ring.at[places].set(value.astype(ring.dtype), unique_indices=True)

    return Replay(
        data=jax.tree.map(store, replay.data, incoming),
        position=(replay.position + count) % capacity,
        size=jnp.minimum(replay.size + count, capacity),
    )


def sample(key: jax.Array, replay: Replay, count: int) -> Sequences:
    """Draws `count` sequences uniformly, with replacement, as [T, count, ...] float32."""
    chosen = jax.random.randint(key, (count,), 0, jnp.maximum(replay.size, 1))

    def take(ring: jax.Array, axis: int) -> jax.Array:
        value = jnp.moveaxis(ring[chosen], 0, axis)
        return value.astype(jnp.float32) if value.dtype == STORED else value

    return over_sequences(take, replay.data)
