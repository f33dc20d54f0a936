"""A key becomes a city: buildings, parks, landmarks, air corridors and no-fly cylinders.

Everything is a whole-array expression of the grid; there are no loops over buildings.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxqmix.compilation import materialise
from jaxqmix.config import FOOTPRINT_ALTITUDE, FOOTPRINT_RADIUS, EnvConfig
from jaxqmix.types import City, EnvParams

COMMERCIAL, RESIDENTIAL, SUBURBAN = 0.4, 0.2, 0.1
"""Share of built cells in the centre, the ring around it and the outskirts."""
LOW_RISE = (10.0, 30.0)
HIGH_RISE = (40.0, 200.0)
"""Building heights, metres."""
HIGH_RISE_SHARE = 0.15
"""Share of high-rises among the buildings of the centre; a third of it elsewhere."""
MAX_HEIGHT = 250.0
"""Heights are stored as whole metres in one byte."""
CORRIDOR_SPACING = 10
"""Every so many rows and columns are an air corridor without buildings."""
CLUSTER = 4
"""Side of the blocks, in cells, over which the density of buildings clusters."""
PARKS, LANDMARKS = 3, 3
NO_FLY_RADIUS = (0.05, 0.09)
"""Radii of no-fly cylinders as a share of the city's shorter side."""
NO_FLY_CEILINGS = (500.0, 120.0, 300.0, 80.0)
"""Ceilings in metres of airport, government, military and stadium, in turn."""


def footprint_radius(altitude: jax.Array, visibility: jax.Array) -> jax.Array:
    """Radius in metres of what a drone sees from `altitude` (m): 100 (1 + z / 500) sqrt(v)."""
    return FOOTPRINT_RADIUS * (1 + altitude / FOOTPRINT_ALTITUDE) * jnp.sqrt(visibility)


def cell_centres(config: EnvConfig) -> tuple[jax.Array, jax.Array]:
    """Centres of the cells in metres: y as [H, 1] and x as [1, W]."""
    y = (jnp.arange(config.rows, dtype=jnp.float32) + 0.5) * config.cell_size
    x = (jnp.arange(config.columns, dtype=jnp.float32) + 0.5) * config.cell_size
    return y[:, None], x[None, :]


def generate_city(key: jax.Array, params: EnvParams, config: EnvConfig) -> City:
    """Draws a city.

    Args:
      key: consumed once.
      params: building density and height, and visibility (for what is coverable).
      config: static sizes.

    Returns:
      A `City` whose `coverable` counts the cells of `coverable_cells`.
    """
    buildings_key, no_fly_key = jax.random.split(key)
    heights = generate_heights(buildings_key, params, config)
    no_fly = generate_no_fly(no_fly_key, config)
    return finish_city(heights, no_fly, params, config)


def finish_city(
    heights: jax.Array,
    no_fly: jax.Array,
    params: EnvParams,
    config: EnvConfig,
    radius: Callable[..., jax.Array] = footprint_radius,
) -> City:
    """Counts the coverable cells of given heights [H, W] (m) and cylinders [K, 4] (m), by the
    sensor's radius."""
    coverable = coverable_cells(no_fly, params.visibility, config, radius)
    return City(heights, no_fly, jnp.sum(coverable, dtype=jnp.int32))


def generate_heights(key: jax.Array, params: EnvParams, config: EnvConfig) -> jax.Array:
    """Building heights [H, W], uint8 whole metres; 0 is open ground."""
    cells, blocks = config.rows * config.columns, math.prod(cluster_shape(config))
    # One draw for everything: each call to the generator costs compile time.
    bits = jax.random.bits(key, (cells + blocks + 2 * (PARKS + LANDMARKS),), jnp.uint32)
    uniform = (bits[cells:] >> 8).astype(jnp.float32) / 2**24
    density, centre = zone_density(config)
    cluster = materialise(clusters(uniform[:blocks], config))
    density = density * params.building_density * cluster
    parks, landmarks = materialise(places(uniform[blocks:].reshape(-1, 2), config))
    bits = bits[:cells].reshape(config.rows, config.columns)
    # The halves of a cell's 32 bits decide whether and how high it is built.
    chance = (bits & 0xFFFF).astype(jnp.float32) / 65536.0
    level = (bits >> 16).astype(jnp.float32) / 65536.0
    share = jnp.where(centre, HIGH_RISE_SHARE, HIGH_RISE_SHARE / 3)
    high = level < share
    position = jnp.where(high, level / share, (level - share) / (1 - share))
    low = jnp.where(high, HIGH_RISE[0], LOW_RISE[0])
    top = jnp.where(high, HIGH_RISE[1], LOW_RISE[1])
    height = jnp.where(chance < density, low + position * (top - low), 0.0)
    height = jnp.where(landmarks, HIGH_RISE[1], height) * params.building_height
    height = jnp.where(parks | corridors(config), 0.0, height)
    return jnp.round(jnp.minimum(height, MAX_HEIGHT)).astype(jnp.uint8)


def zone_density(config: EnvConfig) -> tuple[jax.Array, jax.Array]:
    """Share of built cells [H, W] by zone, and which cells are the commercial centre."""
    y, x = cell_centres(config)
    radius = jnp.hypot(
        (x - config.city_width / 2) / config.city_width,
        (y - config.city_length / 2) / config.city_length,
    )
    centre = radius < 0.2
    density = jnp.where(centre, COMMERCIAL, jnp.where(radius < 0.4, RESIDENTIAL, SUBURBAN))
    return density, centre


def cluster_shape(config: EnvConfig) -> tuple[int, int]:
    """Rows and columns of the blocks over which density clusters."""
    return -(-config.rows // CLUSTER), -(-config.columns // CLUSTER)


def clusters(uniform: jax.Array, config: EnvConfig) -> jax.Array:
    """Factors [H, W] between 0.25 and 1.75, constant over blocks, so that buildings cluster.

    `uniform` holds one number from 0 to 1 per block, flat.
    """
    blocks = 0.25 + 1.5 * uniform.reshape(cluster_shape(config))
    cells = jnp.repeat(jnp.repeat(blocks, CLUSTER, axis=0), CLUSTER, axis=1)
    return cells[: config.rows, : config.columns]


def places(uniform: jax.Array, config: EnvConfig) -> tuple[jax.Array, jax.Array]:
    """Two [H, W] masks: parks (discs without buildings) and landmark towers (single cells).

    `uniform` [PARKS + LANDMARKS, 2] holds their x and y as shares of the city.
    """
    y, x = cell_centres(config)
    spots = uniform * jnp.array([config.city_width, config.city_length])
    park_radius = 0.06 * min(config.city_width, config.city_length)
    parks = jnp.zeros((config.rows, config.columns), bool)
    for spot in spots[:PARKS]:
        parks |= (x - spot[0]) ** 2 + (y - spot[1]) ** 2 < park_radius**2
    landmarks = jnp.zeros_like(parks)
    for spot in spots[PARKS:]:
        reach = config.cell_size / 2
        landmarks |= (jnp.abs(x - spot[0]) < reach) & (jnp.abs(y - spot[1]) < reach)
    return parks, landmarks


def corridors(config: EnvConfig) -> jax.Array:
    """Cells [H, W] of the air corridors, which stay clear of buildings."""
    rows = jnp.arange(config.rows) % CORRIDOR_SPACING == CORRIDOR_SPACING // 2
    columns = jnp.arange(config.columns) % CORRIDOR_SPACING == CORRIDOR_SPACING // 2
    return rows[:, None] | columns[None, :]


def generate_no_fly(key: jax.Array, config: EnvConfig) -> jax.Array:
    """No-fly cylinders [K, 4]: x, y, radius, ceiling in metres.

    Each lies in a sector of its own, so that cylinders never overlap and every one can be flown
    around.
    """
    count = config.no_fly_zones
    if count == 0:
        return jnp.zeros((0, 4), jnp.float32)
    side = max(3, math.ceil(math.sqrt(count)))
    uniform = jax.random.uniform(key, (side * side + 3 * count,))
    _, sector = jax.lax.top_k(uniform[: side * side], count)
    radius, offset = uniform[side * side :][:count, None], uniform[-2 * count :].reshape(-1, 2)
    corner = jnp.stack([sector % side, sector // side], axis=-1).astype(jnp.float32)
    size = jnp.array([config.city_width, config.city_length]) / side
    smallest = min(config.city_width, config.city_length)
    largest = smallest / side / 2 - config.cell_size  # leaves a cell to pass on either side
    low, high = (min(share * smallest, max(largest, 0.0)) for share in NO_FLY_RADIUS)
    radius = low + (high - low) * radius
    slack = size / 2 - radius - min(config.cell_size, smallest / side / 2)
    place = (corner + 0.5) * size + (2 * offset - 1) * jnp.maximum(slack, 0.0)
    ceiling = jnp.array([NO_FLY_CEILINGS[i % len(NO_FLY_CEILINGS)] for i in range(count)])
    return jnp.concatenate([place, radius, ceiling[:, None]], axis=-1).astype(jnp.float32)


def coverable_cells(
    no_fly: jax.Array,
    visibility: jax.Array,
    config: EnvConfig,
    radius: Callable[..., jax.Array] = footprint_radius,
) -> jax.Array:
    """Cells [H, W] (bool) that can be seen from outside the no-fly cylinders.

    A cell deep inside a cylinder that reaches above the highest altitude cannot be seen. Depth is
    measured against the largest footprint less a cell's diagonal, the furthest that the grid keeps
    a drone away from the cylinder.
    """
    y, x = cell_centres(config)
    reach = radius(jnp.float32(config.top_altitude), visibility)
    reach = reach - math.sqrt(2) * config.cell_size
    coverable = jnp.ones((config.rows, config.columns), bool)
    for cylinder in no_fly:
        depth = cylinder[2] - jnp.hypot(x - cylinder[0], y - cylinder[1])
        hidden = (depth > jnp.maximum(reach, 0.0)) & (cylinder[3] > config.top_altitude)
        coverable &= ~hidden
    return coverable
