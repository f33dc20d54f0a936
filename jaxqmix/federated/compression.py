"""Smaller updates: 8 bits with stochastic rounding, top-k and low rank.

A codec is `encode(key, update) -> message` and `decode(message) -> update`. The message is a
pytree of arrays, so its bytes are those of its arrays; both work under `jax.vmap`. What encoding
loses is added to the site's next update where the codec says so (error feedback).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix.federated.aggregate import Tree
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.door import leaves_by_name

Message = Any


@dataclasses.dataclass(frozen=True)
class Codec:
    """How updates are sent."""

    encode: Callable[[jax.Array, Tree], Message]
    decode: Callable[[Message], Tree]
    feedback: bool
    """Whether what is lost is added to the next update; what is unbiased does not need it."""


def quantise(key: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """8-bit codes and their scale, rounded up or down by chance so that the mean is exact.

    Alistarh et al. 2017, "QSGD", section 3.1, with the largest magnitude in place of the norm.

    Returns:
      Codes, int8 like the values, and a float32 scalar.
    """
    scale = jnp.max(jnp.abs(values)) / 127.0
    chance = jax.random.uniform(key, values.shape)
    codes = jnp.floor(values / jnp.maximum(scale, 1e-30) + chance)
    return jnp.clip(codes, -127, 127).astype(jnp.int8), scale


def dequantise(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """Values of `quantise`'s codes."""
    return codes.astype(jnp.float32) * scale


def sparsify(values: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
    """The largest magnitudes of an array: flat places (int32) and values, a share of all.

    Stich et al. 2018, "Sparsified SGD with Memory": top-k, to be used with error feedback.
    """
    flat = values.reshape(-1)
    count = max(1, math.ceil(share * flat.size))
    places = jax.lax.top_k(jnp.abs(flat), count)[1]
    return places, flat[places]


def densify(places: jax.Array, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array that `sparsify` was given, with zeros where nothing was sent."""
    flat = jnp.zeros(math.prod(shape), values.dtype).at[places].set(values)
    return flat.reshape(shape)


def low_rank(key: jax.Array, matrix: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Factors P [n, r] and Q [m, r] with P Q^T near a matrix [n, m].

    Vogels et al. 2019, "PowerSGD", algorithm 1, begun from a random matrix, with one power
    iteration more in place of the warm start, for sites come and go.
    """
    right = jax.random.normal(key, (matrix.shape[1], rank))
    left = jnp.linalg.qr(matrix @ (matrix.T @ (matrix @ right)))[0]
    return left, matrix.T @ left


def shrinks(shape: tuple[int, ...], rank: int) -> bool:
    """Whether two factors of a matrix are smaller than the matrix."""
    return len(shape) == 2 and rank * sum(shape) < math.prod(shape)


def make_codec(config: FederationConfig, like: Tree) -> Codec:
    """Binds a codec to the shapes of updates."""
    leaves, structure = jax.tree.flatten(like)
    names, shapes = list(leaves_by_name(like)), [tuple(leaf.shape) for leaf in leaves]
    kind, share, rank = config.compression, config.keep_share, config.rank

    def encode_leaf(key: jax.Array, leaf: jax.Array) -> Message:
        if kind == "int8":
            return quantise(key, leaf)
        if kind == "top-k":
            return sparsify(leaf, share)
        if kind == "low-rank" and shrinks(leaf.shape, rank):
            return low_rank(key, leaf, rank)
        return (leaf,)

    def decode_leaf(message: Message, shape: tuple[int, ...]) -> jax.Array:
        if kind == "int8":
            return dequantise(*message)
        if kind == "top-k":
            places, sent = message
            return densify(places, sent, shape)
        if kind == "low-rank" and shrinks(shape, rank):
            left, right = message
            return left @ right.T
        return message[0]

    def encode(key: jax.Array, update: Tree) -> Message:
        """What is sent: a tuple of arrays for each leaf, by its name. Consumes the key once."""
        keys = jax.random.split(key, len(names))
        parts = zip(names, keys, jax.tree.leaves(update), strict=True)
        return {name: encode_leaf(k, leaf) for name, k, leaf in parts}

    def decode(message: Message) -> Tree:
        """The update that a message tells of."""
        parts = [decode_leaf(message[n], shape) for n, shape in zip(names, shapes, strict=True)]
        return jax.tree.unflatten(structure, parts)

    return Codec(encode, decode, kind in ("top-k", "low-rank"))


def message_bytes(codec: Codec, like: Tree) -> int:
    """Bytes of a message, without making one."""
    shape = jax.eval_shape(codec.encode, jax.eval_shape(lambda: jax.random.key(0)), like)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shape))
