"""What happens to sites in a simulation: some cannot be reached, some send wrong updates."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxqmix.federated import door
from jaxqmix.federated.aggregate import Tree, by_site
from jaxqmix.federated.config import FederationConfig

BURST = 4.0
"""Rounds that a site is away on average, once it is, with the pattern `burst`."""
PERIOD = 10
"""Rounds after which the pattern `periodic` begins anew."""


def draw_away(
    key: jax.Array, before: jax.Array, round: jax.Array, config: FederationConfig
) -> jax.Array:
    """Which sites [K] cannot be reached in a round.

    `random`: each by itself. `periodic`: each for the first part of every tenth round, one site
    after the other. `burst`: a site that is away stays so for some rounds.

    Args:
      key: consumed once.
      before: [K] bool, away in the round before.
      round: [] int32, rounds so far.
      config: of the federation.
    """
    share, count = config.dropout, before.shape[0]
    chance = jax.random.uniform(key, (count,))
    if config.dropout_pattern == "periodic":
        return (round + jnp.arange(count)) % PERIOD < math.floor(share * PERIOD + 0.5)
    if config.dropout_pattern == "burst" and 0 < share < 1:
        leaves = min(1.0, share / (1 - share) / BURST)
        first = jnp.where(round == 0, share, leaves)
        # 1 / BURST, but where so few are to be there that all leave at once.
        returns = leaves * (1 - share) / share
        return chance < jnp.where(before, 1 - returns, first)
    return chance < share


def attacked(
    key: jax.Array, updates: Tree, weight: jax.Array, hostile: jax.Array, attack: str
) -> tuple[Tree, jax.Array]:
    """Updates [M, ...] and weights [M] of a round in which some chosen sites are hostile.

    Args:
      key: consumed once.
      updates: as they should be.
      weight: likewise.
      hostile: [M] bool.
      attack: what they send; `weight` also turns the sign.
    """
    leaves, structure = jax.tree.flatten(updates)
    size = door.norms(updates)
    count = sum(leaf[0].size for leaf in leaves)

    def wrong(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if attack == "scale":
            return 100.0 * leaf
        if attack == "nan":
            return jnp.full_like(leaf, jnp.nan)
        if attack == "noise":
            scale = by_site(10.0 * size / count**0.5, leaf)
            return scale * jax.random.normal(key, leaf.shape)
        if attack == "copy":
            return jnp.broadcast_to(leaf[jnp.argmin(hostile)], leaf.shape)
        return -leaf

    keys = jax.random.split(key, len(leaves))
    sent = [
        jnp.where(by_site(hostile, leaf), wrong(k, leaf), leaf)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    if attack == "weight":
        weight = jnp.where(hostile, 1e9, weight)
    return jax.tree.unflatten(structure, sent), weight
