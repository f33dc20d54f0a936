"""Aggregation rules: pure functions over pytrees, from the sites' updates to one.

An *update* is what local training changed: a site's weights minus the global ones. Updates are
stacked: every leaf has the axis M of the chosen sites in front. `arrived` [M] says which of them
are there; those that are not may hold anything, even NaN, and change nothing. With none arrived,
every rule gives zeros.

Rules for a mean take `weight` [M]; robust rules do not, for a weight is a claim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix.federated.config import FederationConfig
from jaxqmix.types import pytree_dataclass

Tree = Any
"""A pytree of float32 arrays."""


def by_site(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """Numbers of the sites [M] shaped to fit a leaf [M, ...]."""
    return mask.reshape(-1, *[1] * (leaf.ndim - 1))


def absent_as(value: float, updates: Tree, arrived: jax.Array) -> Tree:
    """The updates with those that did not arrive set to a value."""
    return jax.tree.map(lambda leaf: jnp.where(by_site(arrived, leaf), leaf, value), updates)


def mean(updates: Tree, weight: jax.Array, arrived: jax.Array) -> Tree:
    """The weighted mean.

    FedAvg: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", algorithm 1.

    Args:
      updates: [M, ...] each.
      weight: [M], not negative; env steps flown.
      arrived: [M] bool.
    """
    weight = jnp.where(arrived, weight, 0.0)
    share = weight / jnp.maximum(weight.sum(), 1e-30)
    updates = absent_as(0.0, updates, arrived)
    return jax.tree.map(lambda leaf: jnp.tensordot(share, leaf, axes=1), updates)


def trimmed_mean(updates: Tree, arrived: jax.Array, trim: jax.typing.ArrayLike) -> Tree:
    """The mean of each coordinate without its `trim` lowest and highest values.

    Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    definition 2. With too few updates, as many are trimmed as leave one or two.
    """
    count = arrived.sum()
    low = jnp.minimum(trim, jnp.maximum(count - 1, 0) // 2)
    rank = jnp.arange(arrived.shape[0])
    kept = (rank >= low) & (rank < count - low)

    def one(leaf: jax.Array) -> jax.Array:
        # Absent ones are sorted to the end.
        ordered = jnp.sort(leaf, axis=0)
        total = jnp.where(by_site(kept, leaf), ordered, 0.0).sum(axis=0)
        return total / jnp.maximum(kept.sum(), 1)

    return jax.tree.map(one, absent_as(jnp.inf, updates, arrived))


def median(updates: Tree, arrived: jax.Array) -> Tree:
    """The median of each coordinate; of an even number, the mean of the middle two.

    Yin et al. 2018, definition 1.
    """
    return trimmed_mean(updates, arrived, arrived.shape[0])


def squared_distances(updates: Tree) -> jax.Array:
    """Squared Euclidean distances [M, M] between updates.

    Of differences, one site after the other: from products, close updates would cancel.
    """

    def to_all(one: Tree) -> jax.Array:
        parts = jax.tree.map(
            lambda leaf, own: jnp.sum((leaf - own) ** 2, axis=tuple(range(1, leaf.ndim))),
            updates,
            one,
        )
        return sum(jax.tree.leaves(parts), jnp.float32(0))

    return jax.lax.map(to_all, updates)


def krum_scores(updates: Tree, arrived: jax.Array, hostile: int) -> jax.Array:
    """Scores [M], lower is better: the sum of squared distances to the n - f - 2 nearest others.

    Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", section 4. Infinite for those that did not arrive.
    """
    size, count = arrived.shape[0], arrived.sum()
    distances = squared_distances(absent_as(0.0, updates, arrived))
    other = arrived[None, :] & ~jnp.eye(size, dtype=bool)
    nearest = jnp.sort(jnp.where(other, distances, jnp.inf), axis=1)
    neighbours = jnp.clip(count - hostile - 2, 1, jnp.maximum(count - 1, 1))
    counted = jnp.arange(size) < jnp.minimum(neighbours, count - 1)
    return jnp.where(arrived, jnp.where(counted, nearest, 0.0).sum(axis=1), jnp.inf)


def multi_krum(updates: Tree, arrived: jax.Array, hostile: int, keep: jax.Array) -> Tree:
    """The mean of the `keep` updates with the best scores of Krum.

    Blanchard et al. 2017, section 5 (their m); of equal scores, the first ones.
    """
    order = jnp.argsort(krum_scores(updates, arrived, hostile))
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    return mean(updates, jnp.ones(arrived.shape[0]), arrived & (rank < keep))


def krum(updates: Tree, arrived: jax.Array, hostile: int) -> Tree:
    """The one update that is nearest to its neighbours; see `krum_scores`."""
    return multi_krum(updates, arrived, hostile, jnp.int32(1))


def staleness_share(age: jax.Array, alpha: float, exponent: float = 0.5) -> jax.Array:
    """FedAsync's mixing weight for updates begun `age` rounds ago.

    Xie et al. 2019, "Asynchronous Federated Optimization", section 5.2: polynomial, a = 0.5.
    """
    return alpha * (age + 1.0) ** -exponent


def mix_async(server: Tree, weights: Tree, arrived: jax.Array, share: jax.Array) -> Tree:
    """The server's weights after the sites' weights came in, one after the other.

    Xie et al. 2019, algorithm 1.

    Args:
      server: weights.
      weights: of the sites, not updates, [M, ...].
      arrived: [M] bool.
      share: [M], from `staleness_share`.
    """
    share = jnp.where(arrived, share, 0.0)

    def one(server: Tree, site: tuple[Tree, jax.Array]) -> tuple[Tree, None]:
        theirs, share = site
        return jax.tree.map(lambda a, b: a + share * (b - a), server, theirs), None

    return jax.lax.scan(one, server, (absent_as(0.0, weights, arrived), share))[0]


@pytree_dataclass
class Moments:
    """What a server keeps from round to round; trees like the weights, or ()."""

    first: Tree
    second: Tree


ADAM_BETAS, ADAM_TAU = (0.9, 0.99), 1e-3


def begin_moments(rule: str, weights: Tree) -> Moments:
    """The server's moments before the first round."""
    zeros = jax.tree.map(jnp.zeros_like, weights)
    second = jax.tree.map(lambda leaf: jnp.full_like(leaf, ADAM_TAU**2), weights)
    return Moments(
        first=zeros if rule in ("fedavgm", "fedadam") else (),
        second=second if rule == "fedadam" else (),
    )


def momentum_step(update: Tree, moments: Moments, momentum: float) -> tuple[Tree, Moments]:
    """FedAvgM: Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", section 4.3."""
    first = jax.tree.map(lambda old, new: momentum * old + new, moments.first, update)
    return first, Moments(first, ())


def adam_step(update: Tree, moments: Moments) -> tuple[Tree, Moments]:
    """FedAdam: Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2."""
    one, two = ADAM_BETAS
    first = jax.tree.map(lambda m, d: one * m + (1 - one) * d, moments.first, update)
    second = jax.tree.map(lambda v, d: two * v + (1 - two) * d**2, moments.second, update)
    step = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + ADAM_TAU), first, second)
    return step, Moments(first, second)


@dataclasses.dataclass(frozen=True)
class Aggregator:
    """A rule with its settings bound: `combine` makes one update, `step` moves the server."""

    combine: Callable[[Tree, jax.Array, jax.Array], Tree]
    step: Callable[[Tree, Tree, Moments], tuple[Tree, Moments]]
    begin: Callable[[Tree], Moments]


def make_aggregator(config: FederationConfig) -> Aggregator:
    """Binds a rule; `fedasync` combines like `fedavg`, and rounds call `mix_async` instead."""
    rule, hostile = config.aggregate, config.hostile

    def combine(updates: Tree, weight: jax.Array, arrived: jax.Array) -> Tree:
        """One update of those [M, ...] with weights [M] that arrived [M]."""
        if rule == "median":
            return median(updates, arrived)
        if rule == "trimmed-mean":
            return trimmed_mean(updates, arrived, hostile)
        if rule == "krum":
            return krum(updates, arrived, hostile)
        if rule == "multi-krum":
            keep = jnp.maximum(arrived.sum() - hostile, 1)
            return multi_krum(updates, arrived, hostile, keep)
        return mean(updates, weight, arrived)

    def step(server: Tree, update: Tree, moments: Moments) -> tuple[Tree, Moments]:
        """The server's next weights and moments."""
        if rule == "fedavgm":
            update, moments = momentum_step(update, moments, config.server_momentum)
        if rule == "fedadam":
            update, moments = adam_step(update, moments)
        moved = jax.tree.map(lambda old, change: old + config.rate * change, server, update)
        return moved, moments

    return Aggregator(combine, step, lambda weights: begin_moments(rule, weights))
