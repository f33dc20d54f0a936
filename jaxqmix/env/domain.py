"""From the ranges of a domain to one swarm's world."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxqmix.config import DomainConfig
from jaxqmix.types import EnvParams, RewardWeights, pytree_dataclass

RANGES = tuple(item.name for item in dataclasses.fields(DomainConfig) if item.name != "reward")


@pytree_dataclass
class Ranges:
    """`DomainConfig` as arrays: runs and sites that differ by these share one program.

    A world is drawn from it as from the config.
    """

    building_density: jax.Array  # [2] lowest and highest; likewise the others
    building_height: jax.Array
    wind_speed: jax.Array
    turbulence: jax.Array
    visibility: jax.Array
    packet_loss: jax.Array
    delay: jax.Array
    sensor_noise: jax.Array
    reward: RewardWeights


def ranges(domains: Sequence[DomainConfig]) -> Ranges:
    """The ranges of several domains, stacked: leaves [K, 2], of rewards [K]."""

    def one(domain: DomainConfig) -> Ranges:
        pairs = {name: jnp.asarray(getattr(domain, name), jnp.float32) for name in RANGES}
        weights = dataclasses.asdict(domain.reward)
        weights = {name: jnp.float32(value) for name, value in weights.items()}
        return Ranges(**pairs, reward=RewardWeights(**weights))

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(one, domains))


def draw_params(key: jax.Array, domain: DomainConfig | Ranges) -> EnvParams:
    """Draws one swarm's world from the ranges of a domain. Consumes the key once."""
    draw = jax.random.uniform(key, (9,))
    ranges = (
        domain.building_density,
        domain.building_height,
        domain.wind_speed,
        domain.turbulence,
        domain.visibility,
        domain.packet_loss,
        domain.delay,
        domain.sensor_noise,
    )
    density, height, speed, turbulence, visibility, loss, delay, noise = (
        low + (high - low) * jnp.float32(part)
        for (low, high), part in zip(ranges, draw[:8], strict=True)
    )
    angle = 2 * jnp.pi * draw[8]
    weights = {f.name: getattr(domain.reward, f.name) for f in dataclasses.fields(domain.reward)}
    return EnvParams(
        building_density=density,
        building_height=height,
        wind=speed * jnp.stack([jnp.cos(angle), jnp.sin(angle)]),
        turbulence=turbulence,
        visibility=visibility,
        packet_loss=loss,
        delay=delay,
        sensor_noise=noise,
        reward=RewardWeights(**{name: jnp.float32(value) for name, value in weights.items()}),
    )
