"""Differential privacy of sites: clipped updates, Gaussian noise, and what it spends.

Protected is a site: whoever sees all global policies, not the single updates, learns little of
whether any one site's flights were others. The server is trusted (central privacy): it sees the
updates, and adds the noise. McMahan et al. 2018, "Learning Differentially Private Recurrent
Language Models"; the clipping norm follows the median of the updates' norms as in Andrew et al.
2021, "Differentially Private Learning with Adaptive Clipping".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxqmix.config import ConfigError
from jaxqmix.federated.aggregate import Tree, by_site
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.door import norms

CLIP_RATE = 0.2
"""How fast the clipping norm follows the median (Andrew et al. 2021, section 3)."""


def split_noise(noise: float) -> tuple[float, float]:
    """Noise of the sum of updates, in clipping norms, and of the count of small updates.

    Together they cost what `noise` alone costs (Andrew et al. 2021, theorem 1); the count's noise
    is as large as `noise`, for here few sites are counted.
    """
    return (noise**-2 - (2 * noise) ** -2) ** -0.5, noise


def private_mean(
    key: jax.Array, updates: Tree, arrived: jax.Array, clip: jax.Array, noise: float
) -> tuple[Tree, jax.Array]:
    """The noisy mean of clipped updates, and the next clipping norm.

    The divisor is the number M of chosen sites, whoever arrived: the number that arrived would
    tell of each.

    Args:
      key: consumed once.
      updates: [M, ...] each, finite where they arrived.
      arrived: [M] bool.
      clip: [], the clipping norm.
      noise: standard deviation, in clipping norms.
    """
    count = arrived.shape[0]
    of_sum, of_count = split_noise(noise)
    size = norms(updates)
    factor = jnp.where(arrived, jnp.minimum(1.0, clip / jnp.maximum(size, 1e-30)), 0.0)
    leaves, structure = jax.tree.flatten(updates)
    *keys, count_key = jax.random.split(key, len(leaves) + 1)

    def mean(key: jax.Array, leaf: jax.Array) -> jax.Array:
        clipped = jnp.where(by_site(arrived, leaf), leaf, 0.0) * by_site(factor, leaf)
        error = of_sum * clip * jax.random.normal(key, leaf.shape[1:])
        return (clipped.sum(axis=0) + error) / count

    # Counted from the middle, which halves what one site can change.
    below = jnp.where(arrived, (size <= clip) - 0.5, 0.0).sum()
    share = (below + of_count * jax.random.normal(count_key)) / count + 0.5
    result = jax.tree.unflatten(
        structure, [mean(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    )
    return result, clip * jnp.exp(-CLIP_RATE * (share - 0.5))


def epsilon_spent(rounds: int, sites: int, per_round: int, noise: float, delta: float) -> float:
    """The epsilon that so many rounds spend at a delta, by Renyi accounting (dp-accounting).

    Two federations are neighbours when one site's flights differ. Sites are chosen without
    replacement (Wang et al. 2019, "Subsampled Renyi Differential Privacy"). One site then changes
    a clipped sum by up to two clipping norms, so the noise counts half.

    Args:
      rounds: so far.
      sites: of which those of a round are chosen.
      per_round: how many are chosen.
      noise: standard deviation, in clipping norms.
      delta: the probability with which epsilon may not hold.

    Raises:
      ConfigError: without the package dp-accounting.
    """
    if noise == 0:
        return float("inf")
    if rounds == 0:
        return 0.0
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise ConfigError(
            f'noise = {noise} needs an accountant: pip install ".[privacy]"'
        ) from None
    accountant = rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    event = dp_accounting.GaussianDpEvent(noise / 2)
    if per_round < sites:
        event = dp_accounting.SampledWithoutReplacementDpEvent(sites, per_round, event)
    accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))


def require_budget(config: FederationConfig, sites: int, per_round: int) -> None:
    """Raises `ConfigError` when a run would spend more than it may, or cannot tell."""
    if not config.noise and config.epsilon is None:
        return
    spent = epsilon_spent(config.rounds, sites, per_round, config.noise, config.delta)
    if config.epsilon is not None and spent > config.epsilon:
        raise ConfigError(
            f"epsilon = {config.epsilon} is not allowed: {config.rounds} rounds spend "
            f"{spent:.2f} with noise = {config.noise}; raise noise, or fly fewer rounds"
        )
