"""The scripted planners: legal, safe in calm air, thorough, and never stuck."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_options
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxqmix import planners
from jaxqmix.config import ConfigError, DomainConfig, EnvConfig
from jaxqmix.env import sensing, urban_grid
from jaxqmix.env.city import cell_centres, finish_city, generate_city
from jaxqmix.planners import pursuit, tours
from jaxqmix.planners.lanes import Sweep
from jaxqmix.types import HOVER, City, EnvParams, replace

SENSIBLE = ("greedy", "voronoi", "lanes", "tours")
TOWN = EnvConfig(
    drones=3,
    city_width=700.0,
    city_length=460.0,
    horizon=150,
    no_fly_zones=1,
    neighbours=0,
    patch=1,
    coverage_target=1.1,
)
"""23 x 35 cells of 20 m; the target is out of reach, so that every flight lasts to the horizon."""
CALM = DomainConfig(
    wind_speed=(0.0, 0.0), turbulence=(0.0, 0.0), packet_loss=(0.0, 0.0), delay=(0.0, 0.0)
)
ROUGH = DomainConfig(building_density=(1.5, 2.0), building_height=(1.2, 1.2), delay=(0.2, 0.2))
OPEN = dataclasses.replace(CALM, building_density=(0.0, 0.0), building_height=(0.0, 0.0))
SWARMS = 8


@functools.cache
def compiled_flight(name: str, config: EnvConfig) -> Callable:
    """The compiled flight of a batch of swarms to the horizon: (keys, params, cities) [B] ->
    arrays [B, T, ...] of what happened."""
    policy = planners.planner(name, config)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, dict]:
        params, state, timestep, hidden_state = carry
        policy_key, step_key = jax.random.split(key)
        actions, hidden_state = policy(policy_key, state, timestep, hidden_state)
        mask = timestep.observation.available
        chosen = jnp.take_along_axis(mask, actions[:, None], axis=1)[:, 0]
        state, timestep = urban_grid.step(step_key, state, actions, params, config)
        out = {
            "actions": actions,
            "unavailable": ~chosen,
            "masked": ~jnp.all(mask, axis=1),
            "conflict": timestep.metrics["conflict"],
            "hit": timestep.metrics["building_hit"] | timestep.metrics["violation"],
            "coverage": timestep.metrics["coverage"],
            "altitude": state.position[:, 2],
        }
        return (params, state, timestep, hidden_state), out

    def episode(key: jax.Array, params: EnvParams, city: City) -> dict:
        reset_key, key = jax.random.split(key)
        state, timestep = urban_grid.reset(reset_key, params, config, city)
        carry = (params, state, timestep, policy.initial_hidden_state())
        return jax.lax.scan(step, carry, jax.random.split(key, config.horizon))[1]

    return jax.jit(jax.vmap(episode), compiler_options=quick_options())


@functools.cache
def fly(name: str, config: EnvConfig, domain: DomainConfig, wall: bool = False) -> dict:
    """Flies `SWARMS` swarms, each over its own city, or all over the walled one."""
    keys = jax.random.split(jax.random.key(3), SWARMS)
    params = jax.jit(jax.vmap(functools.partial(urban_grid.draw_params, domain=domain)))(keys)
    make = functools.partial(walled_city if wall else generate_city, config=config)
    cities = jax.jit(jax.vmap(make))(keys, params)
    return jax.device_get(compiled_flight(name, config)(keys, params, cities))


def walled_city(_: jax.Array, params: EnvParams, config: EnvConfig) -> City:
    """A city cut in two by a wall that no drone can overfly, with one gap, and a cylinder."""
    heights = jnp.zeros((config.rows, config.columns), jnp.uint8)
    heights = heights.at[4:, config.columns // 2].set(200)
    cylinder = [config.city_width * 0.8, config.city_length * 0.6, 90.0, 500.0]
    no_fly = jnp.array([cylinder] * config.no_fly_zones)
    return finish_city(heights, no_fly, params, config)


def test_unknown_planner_is_refused():
    with pytest.raises(ConfigError, match=r"planner = spiral .* lanes, tours"):
        planners.planner("spiral", TOWN)
    blind = dataclasses.replace(TOWN, blind_to=("weather",))
    with pytest.raises(ConfigError, match=r"blind_to = weather is not allowed: lanes must know"):
        planners.planner("lanes", blind)
    assert planners.planner("random", blind)


def test_random_takes_every_available_action_and_no_other():
    config = dataclasses.replace(TOWN, drones=1)
    available = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    params = urban_grid.draw_params(jax.random.key(0), OPEN)
    reset = jax.jit(functools.partial(urban_grid.reset, config=config))
    state, timestep = reset(jax.random.key(1), params)
    observation = replace(timestep.observation, available=jnp.asarray(available)[None])
    timestep = replace(timestep, observation=observation)
    keys = jax.random.split(jax.random.key(0), 400)
    policy = planners.planner("random", config)
    actions = jax.jit(jax.vmap(lambda key: policy(key, state, timestep, ())[0][0]))(keys)
    counts = np.bincount(actions, minlength=7)
    assert (counts[~available] == 0).all()
    assert (counts[available] > 60).all()  # 100 expected, standard deviation 9


def test_a_random_crowd_meets_only_without_the_right_of_way():
    crowd = dataclasses.replace(TOWN, drones=20, no_fly_zones=0, horizon=40)
    assert not fly("random", crowd, OPEN)["conflict"].any()
    heedless = dataclasses.replace(crowd, right_of_way=False)
    assert fly("random", heedless, OPEN)["conflict"].any()


@pytest.mark.parametrize("name", planners.PLANNERS)
def test_legal_actions_in_rough_air(name):
    flight = fly(name, TOWN, ROUGH)
    assert flight["actions"].dtype == np.int32
    assert not flight["unavailable"].any()
    assert flight["masked"].mean() > 0.1  # so `unavailable` had a chance


@pytest.mark.parametrize("name", SENSIBLE)
def test_rough_air_is_nearly_safe_and_covered(name):
    flight, aimless = fly(name, TOWN, ROUGH), fly("random", TOWN, ROUGH)
    assert flight["conflict"].mean() < 0.005
    assert flight["hit"].mean() < 0.01
    assert flight["coverage"][:, 89].mean() > 0.95
    assert (flight["coverage"][:, 89] > aimless["coverage"][:, 89] + 0.1).all()


@pytest.mark.parametrize("name", SENSIBLE)
def test_wall_and_cylinder_do_not_hold_a_drone_for_ever(name):
    # The same flights show calm air: nothing is ever struck, and no drone comes too close.
    flight = fly(name, TOWN, CALM, wall=True)
    assert flight["coverage"][:, -1].min() > 0.98
    assert not flight["unavailable"].any()
    assert not flight["conflict"].any()
    assert not flight["hit"].any()


def test_crowd_in_a_tall_city_keeps_apart_and_climbs():
    crowd = dataclasses.replace(
        TOWN, drones=20, city_width=460.0, city_length=700.0, no_fly_zones=0, horizon=40
    )
    flight = fly("lanes", crowd, OPEN)
    assert not flight["conflict"].any()
    assert flight["coverage"][:, -1].min() >= 0.95
    assert (flight["altitude"][:, -1] == crowd.max_altitude).all()


def test_one_drone_covers_alone():
    alone = dataclasses.replace(TOWN, drones=1, no_fly_zones=0)
    flight = fly("greedy", alone, OPEN)
    assert flight["coverage"][:, -1].min() >= 0.95


def test_way_around_a_cylinder():
    config = dataclasses.replace(TOWN, drones=2, zone_foresight=1)
    assert pursuit.berth(dataclasses.replace(config, zone_foresight=2)) == 30.0  # a cell more
    city = City(
        jnp.zeros((config.rows, config.columns), jnp.uint8),
        jnp.array([[300.0, 200.0, 50.0, 100.0]]),
        jnp.int32(1),
    )
    state = world(config, [[200.0, 200.0, 60.0], [200.0, 200.0, 100.0]])
    state = replace(state, city=city)
    start = jnp.array([[[200.0, 200.0], [200.0, 300.0]]] * 2)
    end = jnp.array([[[400.0, 200.0]]] * 2)
    length = jax.jit(pursuit.way_length, static_argnums=3)(start, end, state, config)
    radius = 60.0  # half a cell of margin
    tangent, angle = math.sqrt(100**2 - radius**2), math.acos(radius / 100)
    around = 2 * tangent + radius * (math.pi - 2 * angle)
    straight = math.hypot(200, 100)
    np.testing.assert_allclose(length[1], [200, straight], rtol=1e-5)  # above the ceiling
    np.testing.assert_allclose(length[0, 0], around, rtol=1e-5)
    # The line from (200, 300) passes the centre at 44.7 m, inside the circle.
    assert straight < length[0, 1] < straight + radius


def test_goals_by_brute_force():
    places = [[105.0, 97.0, 60.0], [160.0, 97.0, 60.0], [531.0, 333.0, 60.0]]
    state = world(TOWN, places)
    open_cells = np.random.default_rng(0).random((TOWN.rows, TOWN.columns)) < 0.3
    y, x = (np.arange(n) * 20.0 + 10 for n in (TOWN.rows, TOWN.columns))
    squared = np.stack([(x - px) ** 2 + (y[:, None] - py) ** 2 for px, py, _ in places])
    hidden_state = pursuit.initial_hidden_state(TOWN)
    nearest = jax.jit(pursuit.nearest_cells, static_argnums=(4, 5))
    for territory in (False, True):
        goals = nearest(
            state, jnp.array(open_cells), hidden_state, jnp.float32(60.0), territory, TOWN
        )
        left = open_cells.copy()
        for drone, goal in enumerate(np.asarray(goals)):  # equal distances: lowest index first
            allowed = left
            if territory and (left & (squared.argmin(axis=0) == drone)).any():
                allowed = left & (squared.argmin(axis=0) == drone)
            assert allowed[tuple(goal)]
            assert squared[drone][tuple(goal)] == squared[drone][allowed].min()
            around = (x - x[goal[1]]) ** 2 + (y[:, None] - y[goal[0]]) ** 2
            left &= around >= (pursuit.CLAIM * 60.0) ** 2
    nothing = jnp.zeros((TOWN.rows, TOWN.columns), bool)
    none = nearest(state, nothing, hidden_state, jnp.float32(60.0), True, TOWN)
    assert (none == -1).all()


def test_hopeless_cell_is_given_up_and_tried_again():
    config = dataclasses.replace(TOWN, drones=1)
    state = world(config, [[110.0, 110.0, 60.0]])
    goal, hidden_state = jnp.array([[10, 20]]), pursuit.initial_hidden_state(config)
    remember = jax.jit(pursuit.remember, static_argnums=3)
    given_up_after = None
    for step in range(pursuit.PATIENCE + 5):
        hidden_state = remember(replace(state, time=jnp.int32(step)), goal, hidden_state, config)
        if given_up_after is None and hidden_state.given_up[10, 20] > step:
            given_up_after = step
    assert given_up_after == pursuit.PATIENCE + 1  # the first step sets the goal
    for step, left_alone in ((given_up_after + 1, True), (given_up_after + pursuit.RETRY, False)):
        cells = pursuit.cells_to_see(replace(state, time=jnp.int32(step)), hidden_state, config)
        assert bool(cells[10, 20]) != left_alone
        assert bool(cells[10, 23])


@pytest.mark.parametrize("width, length", [(700.0, 460.0), (460.0, 700.0)])
def test_lanes_cut_the_city_into_equal_parts(width, length):
    config = dataclasses.replace(TOWN, city_width=width, city_length=length)
    sweep = Sweep(config, jnp.float32(100.0))
    assert sweep.lanes == 3  # 460 m in lanes of at most 200 m
    y, x = cell_centres(config)
    along, across = sweep.split(x, y)
    order = np.asarray(sweep.order(along, sweep.lane(across)))
    parts = np.bincount((order // sweep.part_length).astype(int).ravel(), minlength=3)
    assert parts.sum() == config.rows * config.columns
    assert parts.min() > 0.8 * parts.max()  # cells are coarse
    # Going along the boustrophedon, the place never jumps by more than a lane's width.
    places = np.asarray(sweep.place(jnp.arange(5.0, 2100.0, 10.0)))
    assert np.abs(np.diff(places, axis=0)).sum(axis=1).max() <= sweep.lane_width + 10
    assert places.min() > 0
    assert (places.max(axis=0) <= [width, length]).all()


WIDE = dataclasses.replace(TOWN, city_width=1400.0, city_length=920.0)
"""Six rows and eight columns of tiles at most; at a radius of 100 m, five and seven."""


@functools.cache
def drawn_moves(iterations: int) -> Callable:
    """The compiled trial of the tours' search: a seed -> a random order with some tiles done,
    nodes, random moves, what they lead to, and an order after so many iterations."""

    def trial(seed: jax.Array) -> tuple:
        keys = jax.random.split(jax.random.key(seed), 5)
        tiles, drones = tours.Tiles(WIDE, jnp.float32(100.0)), WIDE.drones
        count = math.prod(tours.most_tiles(WIDE))
        places = jax.random.uniform(keys[0], (count, 2)) * jnp.array([1400.0, 920.0])
        starts = jax.random.uniform(keys[1], (drones, 2)) * jnp.array([1400.0, 920.0])
        nodes = jnp.concatenate([starts, jnp.zeros((1, 2)), places]) / WIDE.cell_size
        owner = jax.random.randint(keys[2], (count,), 0, drones + 1)
        owner = jnp.append(jnp.arange(drones + 1), owner)
        order = jnp.argsort(2 * owner + (jnp.arange(len(owner)) > drones), stable=True)
        order = order.astype(jnp.int32)
        paths = tours.measure(order, nodes, drones)
        moves = tours.draw_moves(jax.random.uniform(keys[3], (5, 64)), paths, nodes, tiles)
        after = tours.norms_after(moves, paths, nodes, drones)
        orders = jax.vmap(tours.moved, (None, 0))(order, moves)
        searched = tours.local_search(keys[4], order, places, starts, tiles, jnp.int32(iterations))
        return order, nodes, moves.allowed, after, orders, searched

    return jax.jit(trial)


def norm_of(order: np.ndarray, nodes: np.ndarray, drones: int) -> float:
    """The norm that the search shortens, by walking along each path."""
    starts = [*np.flatnonzero(order <= drones), len(order)]
    lengths = [
        np.sum(np.abs(np.diff(nodes[order[begin:end]], axis=0)) * [1.0, tours.ACROSS])
        for begin, end in itertools.pairwise(starts)
    ]
    return np.mean(np.array(lengths[:drones]) ** tours.NORM) ** (1 / tours.NORM)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_moves_of_tours_lead_where_they_say_and_search_never_to_worse(seed):
    drones = WIDE.drones
    order, nodes, allowed, after, orders, searched = jax.device_get(drawn_moves(40)(seed))
    assert allowed.mean() > 0.2
    for new, expected in zip(orders[allowed], after[allowed], strict=True):
        assert (np.sort(new) == np.arange(len(order))).all()
        assert (new[new <= drones] == np.arange(drones + 1)).all()  # every path keeps its start
        np.testing.assert_allclose(norm_of(new, nodes, drones), expected, rtol=1e-4)
    assert np.isinf(after[~allowed]).all()
    # What is done stays with nobody, and every other tile on one path.
    assert (np.sort(searched) == np.arange(len(order))).all()
    nobody = np.flatnonzero(order == drones)[0]
    assert (searched[nobody:] == order[nobody:]).all()
    assert norm_of(searched, nodes, drones) < norm_of(order, nodes, drones)


@pytest.mark.parametrize("width, length", [(1400.0, 920.0), (920.0, 1400.0)])
def test_tours_begin_with_equal_parts_of_all_open_tiles(width, length):
    config = dataclasses.replace(WIDE, city_width=width, city_length=length, no_fly_zones=0)
    state = world(config, [[300.0, 800.0, 60.0], [200.0, 100.0, 60.0], [500.0, 400.0, 60.0]])
    tiles = tours.Tiles(config, jnp.float32(100.0))
    cells = np.zeros((config.rows, config.columns), bool)
    cells[10:, 5:] = True
    unseen, centroids = jax.device_get(tiles.unseen(jnp.array(cells)))
    rows, columns = (int(count) for count in tiles.counts)
    assert {rows, columns} == {5, 7} and rows == (5 if width > length else 7)
    assert np.isclose(unseen.sum() / (rows * columns), cells.mean())
    y, x = np.nonzero(cells)
    mean = np.average(centroids, axis=0, weights=unseen)
    np.testing.assert_allclose(mean, [(x.mean() + 0.5) * 20, (y.mean() + 0.5) * 20], rtol=1e-5)
    order = np.asarray(tours.lanes_order(tiles, state, jnp.array(unseen == 0)))
    parts = np.split(order, np.flatnonzero(order <= config.drones)[1:])
    assert [part[0] for part in parts] == list(range(config.drones + 1))
    sizes = [len(part) - 1 for part in parts[:-1]]
    assert sum(sizes) == (unseen > 0).sum() and max(sizes) - min(sizes) <= 1
    assert (unseen[parts[-1][1:] - config.drones - 1] == 0).all()
    # The parts lie as the drones do: the second is in the north, the first in the south.
    heights = [centroids[part[1:] - config.drones - 1, 1].mean() for part in parts[:-1]]
    assert heights[1] < heights[2] < heights[0]


def world(config: EnvConfig, places: list) -> urban_grid.State:
    """A state in an open city with drones at given places."""
    return jax.jit(functools.partial(open_world, config=config))(jnp.array(places, jnp.float32))


def open_world(position: jax.Array, config: EnvConfig) -> urban_grid.State:
    """`world` for places [N, 3]."""
    params = urban_grid.draw_params(jax.random.key(0), OPEN)
    nothing = jnp.zeros((config.rows, config.columns), jnp.uint8)
    city = finish_city(nothing, jnp.zeros((0, 4)), params, config)
    return urban_grid.State(
        city=city,
        unseen=sensing.pack_unseen(jnp.ones((config.rows, config.columns), bool), config),
        position=position,
        last_action=jnp.full(config.drones, HOVER, jnp.int32),
        link=jnp.zeros(config.drones, jnp.int32),
        obstruction=urban_grid.dynamics.obstructed_actions(city, position, config),
        time=jnp.int32(0),
        seen=jnp.int32(0),
        perimeter=jnp.int32(0),
    )
