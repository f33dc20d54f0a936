"""Generated cities and the places where swarms start."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import scipy.stats

from jaxqmix.config import ConfigError, DomainConfig, EnvConfig
from jaxqmix.env import city as cities
from jaxqmix.env import dynamics, urban_grid
from jaxqmix.types import replace

CONFIG = EnvConfig(city_width=880.0, city_length=600.0, no_fly_zones=4)
KEYS = 200
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles quickly, without optimisation."""


def params_of(density: float, height: float):
    """A clear world with the given buildings."""
    domain = DomainConfig(
        building_density=(density, density), building_height=(height, height), visibility=(1.0, 1.0)
    )
    return urban_grid.draw_params(jax.random.key(0), domain)


@functools.cache
def many_cities(density: float, height: float):
    """Heights [B, H, W] and no-fly cylinders [B, K, 4] of many keys."""
    city = generate(jax.random.split(jax.random.key(1), KEYS), params_of(density, height))
    return np.asarray(city.heights), np.asarray(city.no_fly)


@quick_jit
def generate(keys, params):
    """Generates a city from every key."""
    return jax.vmap(lambda key: cities.generate_city(key, params, CONFIG))(keys)


def zones() -> list[np.ndarray]:
    """Centre, ring and outskirts [H, W], without the corridors."""
    rows, columns = ref.grid_shape(CONFIG)
    y = (np.arange(rows)[:, None] + 0.5) / rows - 0.5
    x = (np.arange(columns)[None, :] + 0.5) / columns - 0.5
    radius = np.hypot(x, y)
    clear = np.asarray(cities.corridors(CONFIG))
    bounds = ((0.0, 0.2), (0.2, 0.4), (0.4, 1.0))
    return [(low <= radius) & (radius < high) & ~clear for low, high in bounds]


def test_zones_are_as_dense_as_documented():
    """About 0.4, 0.2 and 0.1 of the cells are built, less a few in parks."""
    heights, _ = many_cities(1.0, 1.0)
    shares = [(heights[:, zone] > 0).mean() for zone in zones()]
    for share, documented in zip(shares, (0.4, 0.2, 0.1), strict=True):
        assert 0.85 * documented < share < 1.05 * documented


def test_centre_has_more_high_rises():
    """High-rises are a larger share of the centre's buildings than of the others."""
    heights, _ = many_cities(1.0, 1.0)
    shares = [(heights[:, z] >= 40).sum() / (heights[:, z] > 0).sum() for z in zones()]
    assert shares[0] > 1.5 * shares[1]
    assert shares[0] > 1.5 * shares[2]


def test_buildings_cluster():
    """Buildings of neighbouring cells go together more often than by chance."""
    heights, _ = many_cities(1.0, 1.0)
    built = heights > 0
    clear = np.asarray(cities.corridors(CONFIG))
    ring = zones()[1]
    pair = ring[:, 0::2] & ring[:, 1::2] & ~clear[:, 0::2] & ~clear[:, 1::2]
    left, right = built[:, :, 0::2][:, pair], built[:, :, 1::2][:, pair]
    assert (left & right).mean() > 1.1 * left.mean() * right.mean()


@pytest.mark.parametrize(("density", "height"), [(1.0, 1.0), (3.0, 3.0)])
def test_corridors_stay_clear(density, height):
    """Whole rows and columns never hold a building, and other rows and columns do."""
    heights, _ = many_cities(density, height)
    built = (heights > 0).any(axis=0)
    rows, columns = ~built.any(axis=1), ~built.any(axis=0)
    assert rows.sum() == CONFIG.rows // cities.CORRIDOR_SPACING
    assert columns.sum() == math.ceil((CONFIG.columns - 5) / cities.CORRIDOR_SPACING)
    np.testing.assert_array_equal(
        np.asarray(cities.corridors(CONFIG)), rows[:, None] | columns[None, :]
    )


def test_height_limits():
    """Low-rises begin at 10 m and high-rises end at 200 m; the building factor scales both."""
    heights, _ = many_cities(1.0, 1.0)
    assert heights.dtype == np.uint8
    assert heights[heights > 0].min() == 10 and heights.max() == 200
    assert not np.any((heights > 30) & (heights < 40))
    tall, _ = many_cities(3.0, 3.0)
    assert tall[tall > 0].min() == 30 and tall.max() == cities.MAX_HEIGHT


def test_density_scales_the_built_share():
    """More density builds more; none leaves at most the landmarks."""
    built = [(many_cities(density, 1.0)[0] > 0).sum(axis=(1, 2)) for density in (0.0, 1.0, 3.0)]
    assert built[0].max() <= cities.LANDMARKS
    assert built[0].mean() < built[1].mean() < built[2].mean()


@pytest.mark.parametrize(
    ("zones", "width", "length"),
    [(0, 880.0, 600.0), (1, 600.0, 2000.0), (9, 880.0, 600.0), (16, 600.0, 2000.0)],
)
def test_no_fly_cylinders(zones, width, length):
    """Inside the city, apart from each other, with room to pass, radii and ceilings in range."""
    config = EnvConfig(city_width=width, city_length=length, no_fly_zones=zones)
    keys = jax.random.split(jax.random.key(2), 100)
    draw = jax.vmap(functools.partial(cities.generate_no_fly, config=config))
    cylinders = np.asarray(quick_jit(draw)(keys), float)
    assert cylinders.shape == (100, zones, 4)
    x, y, radius, ceiling = np.moveaxis(cylinders, -1, 0)
    slack = 1e-3
    assert np.all(x - radius >= -slack) and np.all(x + radius <= width + slack)
    assert np.all(y - radius >= -slack) and np.all(y + radius <= length + slack)
    assert np.all(radius <= 0.09 * min(width, length) + slack)
    assert np.all(radius > 0)
    for kind in range(zones):
        assert np.all(ceiling[:, kind] == (500, 120, 300, 80)[kind % 4])
        for other in range(kind):
            distance = np.hypot(x[:, kind] - x[:, other], y[:, kind] - y[:, other])
            assert np.all(distance >= radius[:, kind] + radius[:, other] + config.cell_size)


def test_keys_decide_the_city():
    """The same key draws the same city, different keys different ones."""
    params, keys = params_of(1.0, 1.0), jax.random.split(jax.random.key(3), KEYS)
    first, again = generate(keys, params), generate(keys[::-1], params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), first, again)
    heights, no_fly = np.asarray(first.heights), np.asarray(first.no_fly)
    for one in range(20):
        for other in range(one):
            assert np.any(heights[one] != heights[other])
            assert np.any(no_fly[one] != no_fly[other])


def test_coverable_cells_are_counted():
    """Only what lies deep inside a cylinder that nobody can fly over cannot be seen."""
    config = EnvConfig(city_width=880.0, city_length=600.0, no_fly_zones=2)
    no_fly = jnp.array([[300.0, 300.0, 150.0, 500.0], [700.0, 300.0, 150.0, 120.0]])
    heights = jnp.zeros((30, 44), jnp.uint8)
    for visibility in (1.0, 0.25):
        params = replace(params_of(1.0, 1.0), visibility=jnp.float32(visibility))
        city = cities.finish_city(heights, no_fly, params, config)
        # 124 m sqrt(visibility) less a cell's diagonal of 28.3 m is how deep a look reaches.
        deepest = 124 * math.sqrt(visibility) - 20 * math.sqrt(2)
        hidden = ref.distances(300.0, 300.0, config) < 150 - deepest
        assert hidden.sum() > 0
        assert int(city.coverable) == 30 * 44 - hidden.sum()


SWARMS = {
    1: EnvConfig(drones=1, city_width=160.0, city_length=120.0, no_fly_zones=4),
    2: EnvConfig(drones=2, city_width=160.0, city_length=120.0, no_fly_zones=0),
    10: EnvConfig(drones=10, city_width=300.0, city_length=200.0, cell_size=25.0, no_fly_zones=16),
    50: EnvConfig(drones=50, city_width=480.0, city_length=360.0, no_fly_zones=4),
    100: EnvConfig(drones=100, city_width=600.0, city_length=560.0, no_fly_zones=16),
}


@pytest.mark.parametrize("drones", SWARMS)
def test_starts_are_apart_and_free(drones):
    """Whatever the city, drones start on distinct free places further apart than a conflict."""
    config = SWARMS[drones]
    params = params_of(3.0, 3.0)
    factors = jnp.tile(jnp.array([[0.0, 0.0], [3.0, 3.0], [1.0, 1.0], [3.0, 1.0]]), (25, 1))
    keys = jax.random.split(jax.random.key(4), 100)

    @quick_jit
    @jax.vmap
    def begin(key, factor):
        drawn = replace(params, building_density=factor[0], building_height=factor[1])
        city_key, start_key = jax.random.split(key)
        city = cities.generate_city(city_key, drawn, config)
        heights, position = dynamics.start(start_key, city.heights, city.no_fly, config)
        return heights, city.heights, city.no_fly, position

    for heights, built, no_fly, position in zip(
        *map(np.asarray, begin(keys, factors)), strict=True
    ):
        assert position.shape == (drones, 3)
        offsets = position[:, None, :2] - position[None, :, :2]
        apart = np.hypot(offsets[..., 0], offsets[..., 1]) + 1e9 * np.eye(drones)
        assert apart.min() >= 40
        codes = [ref.obstruction(heights, no_fly, place, config) for place in position]
        assert set(codes) == {ref.FREE}
        # Only buildings on chosen places are cleared.
        cleared = np.argwhere(heights != built)
        chosen = {ref.cell_of(x, y, config) for x, y, _ in position}
        assert {tuple(cell) for cell in cleared} <= chosen
        assert not np.any(heights[heights != built])


def test_starts_differ_between_keys():
    """Another key starts elsewhere in the same city."""
    config = SWARMS[10]
    heights, no_fly = jnp.zeros((config.rows, config.columns), jnp.uint8), jnp.zeros((0, 4))
    keys = jax.random.split(jax.random.key(5), 5)
    begin = jax.vmap(lambda key: dynamics.start(key, heights, no_fly, config)[1])
    starts = np.asarray(quick_jit(begin)(keys))
    assert all(np.any(starts[0] != other) for other in starts[1:])


def test_start_clears_a_building_only_when_it_must():
    """With every cell built, the chosen places are opened and nothing else changes."""
    config = SWARMS[2]
    heights = jnp.full((config.rows, config.columns), 200, jnp.uint8)
    start = quick_jit(functools.partial(dynamics.start, config=config))
    opened, position = start(jax.random.key(0), heights, jnp.zeros((0, 4)))
    cells = [ref.cell_of(x, y, config) for x, y, _ in np.asarray(position)]
    assert {tuple(cell) for cell in np.argwhere(np.asarray(opened) == 0)} == set(cells)
    assert np.sum(np.asarray(opened) == 200) == config.rows * config.columns - 2


@pytest.mark.parametrize(
    ("drones", "width", "length"), [(3, 80.0, 80.0), (7, 160.0, 120.0), (100, 540.0, 560.0)]
)
def test_swarm_that_cannot_fit_is_refused(drones, width, length):
    """At most every second start place may be taken."""
    with pytest.raises(ConfigError, match=rf"env\.drones = {drones} .*fit into this city"):
        EnvConfig(drones=drones, city_width=width, city_length=length)
    places = (length // 40) * (width // 40)
    EnvConfig(drones=int(places // 2), city_width=width, city_length=length)


def test_city_without_a_start_place_is_refused():
    """A swarm of one needs a place to start, too."""
    with pytest.raises(ConfigError, match=r"env\.drones = 1 "):
        EnvConfig(drones=1, city_width=20.0, city_length=20.0, cell_size=5.0)


def test_a_free_place_comes_before_a_built_one():
    config = dataclasses.replace(CONFIG, drones=2)
    heights = np.full((config.rows, config.columns), 200, np.uint8)
    heights[3] = 0
    none = jnp.zeros((0, 4))
    begin = jax.vmap(lambda key: dynamics.start(key, jnp.asarray(heights), none, config))
    opened, position = jax.jit(begin)(jax.random.split(jax.random.key(0), 50))
    assert (np.asarray(opened) == heights).all()
    rows = np.asarray(position)[..., 1] // config.cell_size
    assert (rows == 3).all()


def test_worlds_are_drawn_from_their_ranges():
    """Every number is uniform in its range, and tells nothing about the others."""
    ranges = {"building_density": (0.5, 1), "building_height": (1, 2), "wind_speed": (3, 4),
              "turbulence": (5, 6), "visibility": (0.25, 0.5), "packet_loss": (0.6, 0.7),
              "delay": (0.8, 0.9), "sensor_noise": (10, 11)}  # fmt: skip
    domain = DomainConfig(**ranges)
    draw = jax.jit(jax.vmap(lambda key: urban_grid.draw_params(key, domain)))
    drawn = draw(jax.random.split(jax.random.key(0), 2000))
    wind = np.asarray(drawn.wind)
    values = {n: np.asarray(getattr(drawn, n)) for n in ranges if n != "wind_speed"}
    values["wind_speed"] = np.hypot(*wind.T)
    shares = [(values[name] - low) / (high - low) for name, (low, high) in ranges.items()]
    shares.append(np.arctan2(wind[:, 1], wind[:, 0]) / (2 * np.pi) % 1)
    for share in shares:
        assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(shares) - np.eye(9)).max() < 5 / np.sqrt(2000)
