"""Moves, obstacles, links and conflicts on a hand-drawn map."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

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
    strike = jnp.array([nothing, east, nothing, headings])
    available = dynamics.available_actions(obstructed, strike, jnp.ones((4, 7), bool))
    assert available[0].all()
    assert available[1].tolist() == [True, True, True, False, True, True, True]
    assert available[2].tolist() == [False, True, True, True, True, True, True]
    assert available[3].all()


def test_teammates_narrow_what_is_available_first():
    """With teammates on all sides, a late command is not foreseen."""
    free, strike = jnp.full((1, 7), FREE), jnp.arange(7)[None] == ASCEND
    clear = jnp.isin(jnp.arange(7), jnp.array([ASCEND, HOVER]))[None]
    assert dynamics.available_actions(free, strike, clear).tolist() == clear.tolist()
    one_heading = clear.at[0, WEST].set(True)
    available = dynamics.available_actions(free, strike, one_heading)[0]
    assert np.flatnonzero(available).tolist() == [WEST, HOVER]


def test_one_late_command_is_foreseen():
    """The second move counts, the first and the third do not."""
    others = jnp.array([NORTH, SOUTH, WEST, ASCEND, DESCEND, HOVER])
    struck = []
    for cells in (1, 2, 3):
        heights = np.zeros((CONFIG.rows, CONFIG.columns), np.uint8)
        heights[2, 1 + cells] = 200
        city = replace(CITY, heights=jnp.asarray(heights), no_fly=jnp.zeros((0, 4)))
        strike = dynamics.strikes_later(city, jnp.array([at(2, 1)]), CONFIG)[0]
        assert not strike[others].any()
        struck.append(bool(strike[EAST]))
    assert struck == [False, True, False]


# Where a teammate is (metres from the drone: x, y, altitude), and the moves that it makes
# unavailable, for 20 m cells and 20 m climbs. A teammate to the east has the right of way.
TEAMMATES = {
    "just too far west to meet in two moves": ((-70, 0, 0), ""),
    "west, two moves away": ((-69, 0, 0), "west"),
    "west, beside the way": ((-40, 30, 0), ""),
    "west, touching the way": ((-40, 29, 0), "west"),
    "east, where a move each may meet": ((43, 43, 0), "south east"),
    "the same to the west": ((-43, 43, 0), ""),
    "north, straight": ((0, -60, 0), "north"),
    "on another level": ((-40, 0, 30), ""),
    "one climb higher": ((-25, 0, 20), "west ascend"),
    "one climb lower": ((-25, 0, -20), "west descend"),
    "far above": ((-25, 0, 50), ""),
    "above within two climbs": ((-25, 0, 49), "ascend"),
}


@pytest.mark.parametrize("name", TEAMMATES)
def test_moves_that_could_meet_a_teammate(name):
    offset, unavailable = TEAMMATES[name]
    config = EnvConfig(drones=2, cell_size=20.0, climb=20.0)
    own = np.array([500.0, 500.0, 60.0])
    clear = dynamics.collision_free_actions(jnp.array([own, own + offset]), config)[0]
    assert [ACTIONS[a] for a in np.flatnonzero(~clear)] == unavailable.split()


@pytest.mark.parametrize("cell", [10.0, 20.0, 50.0, 200.0])
def test_clear_moves_that_all_arrive_never_conflict(cell):
    """Whatever the drones choose among their clear moves; heedless ones do conflict."""
    config = EnvConfig(drones=6, cell_size=cell, city_width=100 * cell, city_length=100 * cell)
    random = np.random.default_rng(0)
    place = random.uniform(-1, 1, (20_000, 6, 3)) * (3 * cell + 40, 3 * cell + 40, 60)
    offset = place[:, :, None] - place[:, None]
    apart = np.hypot(offset[..., 0], offset[..., 1]) + 1e9 * np.eye(6)
    place = jnp.asarray(place[apart.min(axis=(1, 2)) > 30], jnp.float32)
    clear = jax.jit(jax.vmap(lambda p: dynamics.collision_free_actions(p, config)))(place)
    scores = random.uniform(size=clear.shape)
    met = []
    for allowed in (clear, np.ones_like(clear)):
        actions = np.where(allowed, scores, -1).argmax(axis=-1)
        after = place + dynamics.displacements(config)[actions]
        met.append(int(jax.vmap(dynamics.conflicts)(place, after).any(axis=-1).sum()))
    assert len(place) > 2000
    assert met[0] == 0 and met[1] > 10


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
