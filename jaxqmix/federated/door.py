"""The door before aggregation: what is not fit is turned away, counted and named.

Plain averaging and medians pass NaN on, one wrong shape ends a run, and a claimed weight of 1e9
takes an average over. `check` looks at what came over a network; `admit` at numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix.federated.aggregate import Tree, by_site
from jaxqmix.types import pytree_dataclass


class UpdateRefused(ValueError):
    """An update that does not fit; the message names the part and what is wrong with it."""


@pytree_dataclass
class Verdicts:
    """What the door did, for each chosen site; [M] bool unless said otherwise."""

    infinite: jax.Array  # turned away: a number is infinite or NaN
    weight: jax.Array  # turned away: the claimed weight is no positive number
    capped: jax.Array  # the claimed weight was cut
    clipped: jax.Array  # the update was scaled down
    norm: jax.Array  # [M] float32, Euclidean norm as sent; NaN or infinite where the update is


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their names, such as `agent.dense_0.kernel`."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]

    def word(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "idx", key)))

    return {".".join(map(word, path)): leaf for path, leaf in found}


def check(update: dict[str, np.ndarray], like: Tree) -> Tree:
    """An update from elsewhere as a tree.

    Args:
      update: arrays by name, see `leaves_by_name`.
      like: what updates look like.

    Raises:
      UpdateRefused: on a missing or unknown part, another shape or dtype, or a number that is not
        finite.
    """
    wanted = leaves_by_name(like)
    for name in sorted(set(wanted) | set(update)):
        if name not in update:
            raise UpdateRefused(f"{name} is missing")
        if name not in wanted:
            raise UpdateRefused(f"{name} is not known here")
        got, want = np.asarray(update[name]), wanted[name]
        for what, one, other in (
            ("shape", got.shape, want.shape),
            ("type", got.dtype, want.dtype),
        ):
            if one != other:
                raise UpdateRefused(f"{name} has {what} {one} and should have {other}")
        if not np.isfinite(got).all():
            raise UpdateRefused(f"{name} holds infinite numbers or NaN")
    return jax.tree.unflatten(jax.tree.structure(like), [update[name] for name in wanted])


def norms(updates: Tree) -> jax.Array:
    """Euclidean norms [M] of updates [M, ...]."""
    squares = [
        jnp.sum(leaf.astype(jnp.float32) ** 2, axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(updates)
    ]
    return jnp.sqrt(sum(squares))


def median_of(values: jax.Array, arrived: jax.Array) -> jax.Array:
    """The median of the values [M] that arrived; NaN when none did."""
    return jnp.nanmedian(jnp.where(arrived, values, jnp.nan))


def admit(
    updates: Tree,
    weight: jax.Array,
    arrived: jax.Array,
    weight_cap: float,
    norm_cap: float,
) -> tuple[Tree, jax.Array, jax.Array, Verdicts]:
    """Lets in what is finite, with weights and norms within so many medians of the round.

    Args:
      updates: [M, ...] each.
      weight: [M], as claimed.
      arrived: [M] bool.
      weight_cap: in medians of the weights.
      norm_cap: in medians of the norms.

    Returns:
      Updates, weights and who is in, and the verdicts.
    """
    size = norms(updates)
    infinite = arrived & ~jnp.isfinite(size)
    bad_weight = arrived & ~infinite & ~(jnp.isfinite(weight) & (weight > 0))
    admitted = arrived & ~infinite & ~bad_weight
    most = weight_cap * median_of(weight, admitted)
    largest = norm_cap * median_of(size, admitted)
    capped, clipped = admitted & (weight > most), admitted & (size > largest)
    factor = jnp.where(clipped, largest / jnp.maximum(size, 1e-30), 1.0)
    updates = jax.tree.map(
        lambda leaf: jnp.where(by_site(admitted, leaf), leaf * by_site(factor, leaf), 0.0), updates
    )
    weight = jnp.where(admitted, jnp.minimum(weight, most), 0.0)
    return updates, weight, admitted, Verdicts(infinite, bad_weight, capped, clipped, size)
