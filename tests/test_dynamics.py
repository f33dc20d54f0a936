"""Moves, obstacles, links and conflicts on a hand-drawn map."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxqmix.config import EnvConfig
from jaxqmix.env import dynamics
from jaxqmix.types import (
    ACTIONS,
    ASCEND,
    BORDER,
    BUILDING,
    DELAYED,
    DESCEND,
    EAST,
    FREE,
    HOVER,
    LOST,
    NO_FLY,
    NORTH,
    RECEIVED,
    SOUTH,
    WEST,
    City,
    EnvParams,
    RewardWeights,
    replace,
)

MAP = """
........
.#......
.##...T.
........
......#.
........
"""
"""Six rows of eight cells of 20 m: # is a house of 30 m, T a tower of 200 m."""

CONFIG = EnvConfig(drones=2, city_width=160.0, city_length=120.0)
NO_FLY_ZONE = (70.0, 90.0, 15.0, 60.0)
"""x, y, radius and ceiling: the cell in row 4 and column 3."""


def hand_drawn_city() -> City:
    """The city of `MAP`."""
    heights = {".": 0, "#": 30, "T": 200}
    rows = [[heights[cell] for cell in row] for row in MAP.split()]
    return City(jnp.array(rows, jnp.uint8), jnp.array([NO_FLY_ZONE]), jnp.int32(48))


CITY = hand_drawn_city()


def params(wind=(0.0, 0.0), turbulence=0.0, packet_loss=0.0, delay=0.0) -> EnvParams:
    """A world that is calm and has perfect links unless said otherwise."""
    one = jnp.float32(1)
    return EnvParams(
        building_density=one,
        building_height=one,
        wind=jnp.array(wind, jnp.float32),
        turbulence=jnp.float32(turbulence),
        visibility=one,
        packet_loss=jnp.float32(packet_loss),
        delay=jnp.float32(delay),
        sensor_noise=jnp.float32(0),
        reward=RewardWeights(*(one for _ in range(7))),
    )


def at(row: int, column: int, altitude: float = 20.0) -> list[float]:
    """The middle of a cell."""
    return [(column + 0.5) * 20, (row + 0.5) * 20, altitude]


def move(places, actions, world=None, gusts=None):
    """Moves drones; returns places and obstruction codes."""
    places = jnp.array(places, jnp.float32)
    gusts = jnp.zeros((len(places), 2)) if gusts is None else jnp.array(gusts, jnp.float32)
    obstructed = dynamics.obstructed_actions(CITY, places, CONFIG)
    actions = jnp.array(actions, jnp.int32)
    after, code = dynamics.move(places, actions, obstructed, gusts, CITY, world or params(), CONFIG)
    return np.asarray(after), np.asarray(code)


@pytest.mark.parametrize(
    ("action", "offset"),
    [
        (NORTH, (0, -20, 0)),
        (SOUTH, (0, 20, 0)),
        (WEST, (-20, 0, 0)),
        (EAST, (20, 0, 0)),
        (ASCEND, (0, 0, 20)),
        (DESCEND, (0, 0, -20)),
        (HOVER, (0, 0, 0)),
    ],
)
def test_free_moves(action, offset):
    """North is up the rows, west is down the columns; a move is one cell or one climb."""
    start = at(3, 3, 60)
    after, code = move([start], [action])
    np.testing.assert_allclose(after[0] - np.array(start), offset)
    assert code[0] == FREE


BLOCKED = {
    "house to the south": (at(0, 1), SOUTH, BUILDING),
    "house to the west": (at(1, 2), WEST, BUILDING),
    "house to the north": (at(5, 6), NORTH, BUILDING),
    "tower to the east, at the highest altitude": (at(2, 5, 120), EAST, BUILDING),
    "house below": (at(1, 1, 40), DESCEND, BUILDING),
    "no-fly zone to the east": (at(4, 2), EAST, NO_FLY),
    "no-fly zone to the south": (at(3, 3, 40), SOUTH, NO_FLY),
    "no-fly zone below": (at(4, 3, 60), DESCEND, NO_FLY),
    "northern border": (at(0, 3), NORTH, BORDER),
    "southern border": (at(5, 3), SOUTH, BORDER),
    "western border": (at(3, 0), WEST, BORDER),
    "eastern border": (at(3, 7), EAST, BORDER),
    "lowest altitude": (at(3, 3, 20), DESCEND, BORDER),
    "highest altitude": (at(3, 3, 120), ASCEND, BORDER),
}


@pytest.mark.parametrize("name", BLOCKED)
def test_blocked_move_holds(name):
    """A drone that may not go where it was told stays, and the obstacle is named."""
    start, action, obstacle = BLOCKED[name]
    after, code = move([start], [action])
    np.testing.assert_array_equal(after[0], np.array(start, np.float32))
    assert code[0] == obstacle


PASSED = {
    "above the house": (at(0, 1, 40), SOUTH),
    "at the no-fly zone's ceiling": (at(4, 2, 60), EAST),
    "between the houses": (at(0, 2), SOUTH),
    "along the border": (at(0, 0), EAST),
    "up to the highest altitude": (at(3, 3, 100), ASCEND),
}


@pytest.mark.parametrize("name", PASSED)
def test_narrow_passages_are_open(name):
    """Above a roof, at a ceiling and along the border a drone may fly."""
    start, action = PASSED[name]
    after, code = move([start], [action])
    assert np.any(after[0] != np.array(start, np.float32))
    assert code[0] == FREE


def test_roof_height_is_not_above_the_roof():
    """A drone at exactly a building's height is in the building."""
    for altitude, expected in ((29.9, BUILDING), (30.0, BUILDING), (30.1, FREE)):
        place = jnp.array(at(1, 1, altitude), jnp.float32)
        assert dynamics.obstruction(CITY, place, CONFIG) == expected


def test_obstructions_by_rank():
    """The border comes before a building, and a building before a no-fly zone."""
    cells = jnp.full((6, 8), 200, jnp.uint8)
    built = City(cells, jnp.array([[80.0, 60.0, 500.0, 500.0]]), jnp.int32(48))
    open_ground = City(cells * 0, built.no_fly, jnp.int32(48))
    places = jnp.array([at(2, 3), [-1.0, 30.0, 40.0], at(2, 3, 125.0)])
    assert dynamics.obstruction(built, places, CONFIG).tolist() == [BUILDING, BORDER, BORDER]
    assert dynamics.obstruction(open_ground, places, CONFIG).tolist() == [NO_FLY, BORDER, BORDER]


@pytest.mark.parametrize("climb", [12.7, 20.0, 25.3, 33.3])
def test_every_level_is_reached_again_from_the_top(climb):
    """Climbs add up in float32, and the sums may end just outside of the limits."""
    config = dataclasses.replace(CONFIG, climb=climb)
    levels = int((config.max_altitude - config.min_altitude) / climb + 1e-6)
    altitude = np.float32(config.min_altitude)
    places = []
    for step in [np.float32(climb)] * levels + [np.float32(-climb)] * levels:
        altitude = np.float32(altitude + step)
        places.append(at(2, 3, altitude))
    open_ground = City(jnp.zeros((6, 8), jnp.uint8), jnp.zeros((0, 4)), jnp.int32(48))
    assert (np.asarray(dynamics.obstruction(open_ground, jnp.array(places), config)) == FREE).all()
    beyond = jnp.array([at(2, 3, altitude - climb), at(2, 3, config.max_altitude + 0.1)])
    assert dynamics.obstruction(open_ground, beyond, config).tolist() == [BORDER, BORDER]


def test_obstructed_actions_of_a_corner():
    """In the north-western corner, low: north, west and down are the border."""
    codes = dynamics.obstructed_actions(CITY, jnp.array([at(0, 0)]), CONFIG)[0]
    expected = {NORTH: BORDER, WEST: BORDER, DESCEND: BORDER}
    assert codes.tolist() == [expected.get(action, FREE) for action in range(7)]


def test_wind_and_turbulence_displace():
    """Five per cent of the wind over a step's 20 / 15 seconds, and gusts times turbulence."""
    world = params(wind=(9.0, -6.0), turbulence=2.0)
    after, code = move([at(3, 3, 60), at(3, 5, 60)], [HOVER, EAST], world, [[1, 0], [0, -0.5]])
    drift = np.array([9.0, -6.0]) * 0.05 * 20 / 15
    np.testing.assert_allclose(after[0], [70 + drift[0] + 2, 70 + drift[1], 60])
    np.testing.assert_allclose(after[1], [130 + drift[0], 70 + drift[1] - 1, 60])
    assert code.tolist() == [FREE, FREE]


@pytest.mark.parametrize(
    ("start", "gust"),
    [(at(3, 0), (-12, 0)), (at(0, 1), (0, 12)), (at(4, 2), (12, 0)), (at(3, 7), (12, 0))],
)
def test_drift_never_enters_an_obstacle(start, gust):
    """Station keeping holds a drone that the air would push into something; that is no event."""
    after, code = move([start], [HOVER], params(turbulence=1.0), [gust])
    np.testing.assert_array_equal(after[0], np.array(start, np.float32))
    assert code[0] == FREE


def test_lossy_link():
    """A lost command becomes hover, a late one the last action; a loss hides a delay."""
    chances = jnp.array([[0.5, 0.5], [0.05, 0.5], [0.5, 0.05], [0.05, 0.05]])
    commands = jnp.array([NORTH, NORTH, NORTH, NORTH])
    last = jnp.array([EAST, EAST, EAST, EAST])
    world = params(packet_loss=0.1, delay=0.1)
    executed, link = dynamics.deliver(chances, commands, last, world)
    assert executed.tolist() == [NORTH, HOVER, EAST, HOVER]
    assert link.tolist() == [RECEIVED, LOST, DELAYED, LOST]


def test_perfect_and_broken_links():
    """Probability 0 never loses and probability 1 always does."""
    chances = jnp.array([[0.0, 0.0], [0.999999, 0.999999]])
    commands, last = jnp.array([NORTH, SOUTH]), jnp.array([WEST, EAST])
    executed, link = dynamics.deliver(chances, commands, last, params())
    assert executed.tolist() == [NORTH, SOUTH] and link.tolist() == [RECEIVED, RECEIVED]
    executed, _ = dynamics.deliver(chances, commands, last, params(packet_loss=1.0))
    assert executed.tolist() == [HOVER, HOVER]
    executed, link = dynamics.deliver(chances, commands, last, params(delay=1.0))
    assert executed.tolist() == [WEST, EAST] and link.tolist() == [DELAYED, DELAYED]


CONFLICTS = {
    "two drones swap places": ([at(3, 3), at(3, 4)], [at(3, 4), at(3, 3)], True),
    "two drones swap altitudes": ([at(3, 3, 20), at(3, 3, 40)], [at(3, 3, 40), at(3, 3, 20)], True),
    "both end in one cell": ([at(3, 3), at(3, 5)], [at(3, 4), at(3, 4)], True),
    "one follows the other": ([at(3, 3), at(3, 4)], [at(3, 4), at(3, 5)], False),
    "they pass side by side": ([at(3, 3), at(2, 4)], [at(2, 3), at(3, 4)], False),
    "neighbours hover 20 m apart": ([at(3, 3), at(3, 4)], [at(3, 3), at(3, 4)], False),
    "pass 20 m above": ([at(3, 3, 20), at(3, 4, 40)], [at(3, 4, 20), at(3, 3, 40)], False),
    "they part to 40 m, 20 m at the middle": ([at(3, 3)] * 2, [at(3, 2), at(3, 4)], False),
    "one leaves the other's cell": ([at(3, 3)] * 2, [at(3, 3), at(3, 4)], True),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts_of_two(name):
    """Too close at the end or the middle of the move; exactly 20 m is far enough."""
    before, after, expected = CONFLICTS[name]
    flags = dynamics.conflicts(jnp.array(before), jnp.array(after))
    assert flags.tolist() == [expected, expected]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((19.9, 0, 0), True),
        ((20.0, 0, 0), False),
        ((0, -19.9, 9.9), True),
        ((14, 14, 0), True),
        ((14.5, 14.5, 0), False),
        ((0, 0, 10.0), False),
        ((0, 0, -9.9), True),
    ],
)
def test_conflict_distances(offset, expected):
    """Closer than 20 m in the plane and closer than 10 m in altitude, both."""
    places = jnp.array([[60.0, 60.0, 60.0], [60 + offset[0], 60 + offset[1], 60 + offset[2]]])
    assert dynamics.conflicts(places, places).tolist() == [expected, expected]


def test_only_those_in_conflict_are_flagged():
    """A third drone far away is not part of two others' conflict, and nobody's alone."""
    before = jnp.array([at(3, 3), at(0, 7), at(3, 4)])
    after = jnp.array([at(3, 4), at(0, 7), at(3, 3)])
    assert dynamics.conflicts(before, after).tolist() == [True, False, True]
    assert dynamics.conflicts(before[:1], after[:1]).tolist() == [False]


def test_moves_that_would_strike_when_repeated_are_not_available():
    """Unless no heading is left; a border strikes nothing."""
    nothing, east, headings = np.zeros(7, bool), np.arange(7) == EAST, np.arange(7) < 4
    obstructed = jnp.full((4, 7), FREE).at[2, NORTH].set(BORDER)
    repeats = 3 - 3 * jnp.array([nothing, east, nothing, headings])
    available = dynamics.available_actions(obstructed, repeats, jnp.ones((4, 7), bool))
    assert available[0].all()
    assert available[1].tolist() == [True, True, True, False, True, True, True]
    assert available[2].tolist() == [False, True, True, True, True, True, True]
    assert available[3].all()


def test_teammates_narrow_what_is_available_first():
    """With teammates on all sides, late commands are foreseen as far as what is left allows."""
    free, repeats = jnp.full((1, 7), FREE), jnp.where(jnp.arange(7)[None] == ASCEND, 0, 3)
    clear = jnp.isin(jnp.arange(7), jnp.array([ASCEND, HOVER]))[None]
    assert dynamics.available_actions(free, repeats, clear).tolist() == clear.tolist()
    one_heading = clear.at[0, WEST].set(True)
    available = dynamics.available_actions(free, repeats, one_heading)[0]
    assert np.flatnonzero(available).tolist() == [WEST, HOVER]
    # No heading may be repeated three times: the one that may be most often.
    repeats = jnp.array([[1, 2, 0, 2, 3, 1, 3]])
    available = dynamics.available_actions(free, repeats, jnp.ones((1, 7), bool))[0]
    assert np.flatnonzero(available).tolist() == [SOUTH, EAST, ASCEND, HOVER]


def open_field(cell, drones=1, **foresight):
    """A city of 40 x 40 cells without anything, and its config."""
    side = 40 * cell
    config = EnvConfig(
        drones=drones, cell_size=cell, city_width=side, city_length=side, **foresight
    )
    return City(jnp.zeros((40, 40), jnp.uint8), jnp.zeros((0, 4)), jnp.int32(1600)), config


@pytest.mark.parametrize("foresight", [0, 1, 3])
def test_late_commands_are_foreseen(foresight):
    """By one to three repeats, and no more; the move itself is no repeat."""
    empty, config = open_field(20.0, foresight=foresight, zone_foresight=foresight)
    place = jnp.array([[410.0, 410.0, 60.0]])  # in the middle of its cell
    for cells in range(1, 7):
        city = replace(empty, heights=empty.heights.at[20, 20 + cells].set(200))
        repeats, twice = dynamics.safe_repeats(city, place, config)
        expected = cells - 2 if 2 <= cells < foresight + 2 else foresight
        assert repeats[0, EAST] == expected and twice[0, EAST] == (cells == 2)
        assert (jnp.delete(repeats[0], EAST) == foresight).all() and twice.sum() <= 1


def test_buildings_are_foreseen_further_than_zones():
    empty, config = open_field(20.0, foresight=3, zone_foresight=1)
    place = jnp.array([[410.0, 410.0, 60.0]])
    for cells, found in ((2, 0), (3, 3), (4, 3)):
        zone = jnp.array([[410.0, 410 - 20.0 * cells, 6.0, 500.0]])
        city = replace(empty, no_fly=zone)
        assert dynamics.safe_repeats(city, place, config)[0][0, NORTH] == found


def test_a_descent_onto_a_roof_is_foreseen():
    empty, config = open_field(20.0)
    city = replace(empty, heights=empty.heights.at[20, 20].set(45))
    repeats, _ = dynamics.safe_repeats(city, jnp.array([[410.0, 410.0, 120.0]]), config)
    assert repeats[0].tolist() == [3, 3, 3, 3, 3, 2, 3]


def test_air_may_set_a_drone_off_its_way():
    """Of the first repeat, buildings beside the way by up to 4 m count, and zones as much nearer;
    of the others only what is on the way."""
    empty, config = open_field(50.0)
    for row, found in ((18, (3, 3, 0, 0)), (17, (3, 3, 3, 1))):
        city = replace(empty, heights=empty.heights.at[row, 21].set(200))
        for x, safe in zip((1025.0, 1045.0, 1047.0, 1060.0), found, strict=True):
            place = jnp.array([[x, 1025.0, 60.0]])
            assert dynamics.safe_repeats(city, place, config)[0][0, NORTH] == safe
    zone = replace(empty, no_fly=jnp.array([[1025.0, 900.0, 40.0, 500.0]]))
    for x, safe in ((1025.0, 0), (1067.0, 0), (1075.0, 3)):
        place = jnp.array([[x, 1000.0, 60.0]])
        assert dynamics.safe_repeats(zone, place, config)[0][0, NORTH] == safe


# Where a teammate is (metres from the drone: x, y, altitude), its last action, and the moves that
# it makes unavailable, for 20 m cells and 20 m climbs: four moves are 80 m, and 50 m stay free.
TEAMMATES = {
    "just too far to meet in four moves": ((-130, 0, 0), HOVER, ""),
    "four moves away": ((-129, 0, 0), HOVER, "west"),
    "beside the way": ((-100, 50, 0), HOVER, ""),
    "touching the way": ((-80, 49, 0), HOVER, "west"),
    "across a corner": ((43, 43, 0), HOVER, "south east"),
    "on another level": ((-40, 0, 30), HOVER, "ascend"),
    "one climb higher": ((-25, 0, 20), HOVER, "west ascend"),
    "one climb lower": ((-25, 0, -20), HOVER, "west descend"),
    "far above": ((-25, 0, 110), HOVER, ""),
    "above within four climbs": ((-25, 0, 109), HOVER, "ascend"),
    "comes nearer": ((-160, 60, 0), EAST, ""),
    "comes and crosses": ((-80, 85, 0), NORTH, "west"),
    "the same, not repeating": ((-80, 85, 0), HOVER, ""),
    "flies away": ((-130, 0, 0), WEST, ""),
    "flies past": ((-60, 60, 0), EAST, "south"),
}


@pytest.mark.parametrize("name", TEAMMATES)
def test_moves_that_could_meet_a_teammate(name):
    offset, last, unavailable = TEAMMATES[name]
    config = EnvConfig(drones=2, cell_size=20.0, climb=20.0, foresight=3)
    own = np.array([500.0, 500.0, 60.0])
    places, last = jnp.array([own, own + offset]), jnp.array([EAST, last])
    clear = dynamics.collision_free_actions(places, last, config)[0]
    assert [ACTIONS[a] for a in np.flatnonzero(~clear)] == unavailable.split()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_clear_moves_equal_the_reference(data):
    """Whole metres, so that nothing is too close to tell."""
    metres = st.tuples(st.integers(0, 300), st.integers(0, 300), st.sampled_from([20, 40, 50, 120]))
    places = np.array(data.draw(st.lists(metres, min_size=3, max_size=3)), np.float32)
    last = np.array(data.draw(st.lists(st.integers(0, 6), min_size=3, max_size=3)))
    cell, foresight = data.draw(st.sampled_from([(20.0, 3), (50.0, 1), (10.0, 0)]))
    _, config = open_field(cell, 3, foresight=foresight)
    np.testing.assert_array_equal(
        CLEAR(places, last, config=config),
        ref.collision_free_actions(places.astype(float), last, config),
    )


CLEAR = jax.jit(dynamics.collision_free_actions, static_argnames="config")


def late_flights(config, late, steps=24, swarms=500):
    """How many conflicts a crowd has in calm air that flies at random among its clear moves, while
    the commands of drone `late[t]` come late at step t, and one in ten is lost."""
    random = np.random.default_rng(0)
    cell, drones = config.cell_size, config.drones
    place = random.uniform(-1, 1, (20 * swarms, drones, 3)) * (3 * cell + 60, 3 * cell + 60, 30)
    offset = place[:, :, None] - place[:, None]
    apart = np.hypot(offset[..., 0], offset[..., 1]) + 1e9 * np.eye(drones)
    place = place[apart.min(axis=(1, 2)) > 30][:swarms]
    assert len(place) > swarms / 4

    def step(carry, given):
        (place, last), (key, late) = carry, given
        keys = jax.random.split(key)
        clear = jax.vmap(lambda *swarm: dynamics.collision_free_actions(*swarm, config))(
            place, last
        )
        command = jnp.where(clear, jax.random.uniform(keys[0], clear.shape), -1).argmax(axis=-1)
        command = jnp.where(jax.random.uniform(keys[1], last.shape) < 0.1, HOVER, command)
        last = jnp.where(jnp.arange(drones) == late, last, command)
        after = place + dynamics.displacements(config)[last]
        return (after, last), jnp.sum(jax.vmap(dynamics.conflicts)(place, after))

    start = (jnp.asarray(place, jnp.float32), jnp.full(place.shape[:2], HOVER))
    keys = jax.random.split(jax.random.key(0), steps)
    _, met = jax.jit(lambda *given: jax.lax.scan(step, *given))(start, (keys, jnp.asarray(late)))
    return int(met.sum())


@pytest.mark.parametrize("cell", [10.0, 20.0, 50.0])
def test_clear_moves_never_conflict_while_one_drone_is_late(cell):
    """One after the other, three commands in a row each; with less foresight they do conflict."""
    late = np.arange(24) // 3 % 6
    assert late_flights(open_field(cell, 6, foresight=3)[1], late) == 0
    assert late_flights(open_field(cell, 6, foresight=0)[1], late) > 0


def test_disturbances_follow_their_distributions():
    """Chances are uniform, the air's numbers standard normal, and none depends on another."""
    keys = jax.random.split(jax.random.key(0), 2000)
    chances, air = jax.vmap(lambda key: dynamics.draw_disturbances(key, 10))(keys)
    columns = np.concatenate([chances, air], axis=-1).reshape(-1, 7)
    assert scipy.stats.kstest(columns[:, 0], "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(columns[:, 1], "uniform").pvalue > 1e-3
    for column in range(2, 7):
        assert scipy.stats.kstest(columns[:, column], "norm").pvalue > 1e-3
    correlation = np.corrcoef(columns.T) - np.eye(7)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(columns))
