"""The world as PettingZoo's parallel environment, by its own tests and by stricter ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from conftest import CITY_BLOCK

import jaxqmix
from jaxqmix.maps import CityMap
from jaxqmix.types import replace

pytest.importorskip("pettingzoo", reason='needs pettingzoo: pip install ".[pettingzoo]"')
from pettingzoo.test import parallel_api_test, parallel_seed_test

from jaxqmix.adapters.pettingzoo import parallel_env

WORLD = replace(CITY_BLOCK, drones=3, horizon=12)


@pytest.fixture(scope="module", name="env")
def env_fixture():
    """Compiled once for all tests."""
    env = parallel_env(WORLD)
    env.reset(seed=0)
    return env


def another(env):
    """A second environment with the compiled functions of the first."""
    twin = copy.copy(env)
    twin.action_spaces = copy.deepcopy(env.action_spaces)
    twin.observation_spaces = copy.deepcopy(env.observation_spaces)
    return twin


def fly(env, seed: int | None, choose) -> list:
    """A whole episode: everything that the environment gave, step by step."""
    given = [env.reset(seed=seed), env.state()]
    observations = given[0][0]
    while env.agents:
        actions = {agent: choose(agent, observations[agent]) for agent in env.agents}
        observations, *rest = env.step(actions)
        given.append((observations, *rest, env.state()))
    return given


def chooser(seed: int, legal: bool):
    """Random actions, of the available ones or of all."""
    draw = np.random.default_rng(seed)

    def choose(agent, observation):
        allowed = np.flatnonzero(observation["action_mask"]) if legal else np.arange(7)
        return int(draw.choice(allowed))

    return choose


def assert_equal(first, second):
    """Two nests of containers with equal arrays, to the bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert_equal(value, second[name])
    elif isinstance(first, list | tuple):
        for pair in zip(first, second, strict=True):
            assert_equal(*pair)
    else:
        np.testing.assert_array_equal(first, second)
        assert type(first) is type(second)


def test_passes_their_test_of_the_interface(env):
    parallel_api_test(env, num_cycles=30)


def test_passes_their_test_of_seeds(env):
    parallel_seed_test(lambda: another(env), num_cycles=10)


@pytest.mark.parametrize("legal", [True, False])
def test_a_seed_decides_whole_episodes(env, legal):
    """Two episodes in a row, the second without a seed of its own."""
    first = [fly(env, 7, chooser(0, legal)), fly(env, None, chooser(1, legal))]
    second = [fly(env, 7, chooser(0, legal)), fly(env, None, chooser(1, legal))]
    assert_equal(first, second)
    observed = [episode[0][0]["drone_0"]["observation"] for episode in first]
    assert not np.array_equal(*observed), "the second episode is another"
    other = fly(env, 8, chooser(0, legal))
    assert not np.array_equal(other[0][0]["drone_0"]["observation"], observed[0])
    if not legal:
        moved = [step[0]["drone_0"]["observation"] for step in first[0][2:]]
        assert np.isfinite(moved).all()


def test_what_is_given_is_numpy_and_in_its_space(env):
    flown = fly(env, 3, chooser(2, legal=True))
    for agent in env.possible_agents:
        assert env.observation_space(agent) is env.observation_space(agent)
        assert env.action_space(agent) is env.action_space(agent)
        assert env.observation_space(agent).contains(flown[0][0][agent])
    assert env.state_space.contains(env.state()) and type(env.state()) is np.ndarray
    observations, rewards, terminated, truncated, infos, _ = flown[-1]
    assert observations.keys() == rewards.keys() == infos.keys() == set(env.possible_agents)
    assert type(rewards["drone_1"]) is float and len(set(rewards.values())) == 1
    # Random flights do not see 85 % in 12 steps: the time is up, and nobody is left.
    assert set(terminated.values()) == {False} and set(truncated.values()) == {True}
    assert len(flown) == 2 + WORLD.horizon and env.agents == []
    assert env.step({}) == ({}, {}, {}, {}, {})
    assert type(observations["drone_0"]["observation"]) is np.ndarray


def test_bad_actions_name_the_drone(env):
    env.reset(seed=0)
    for actions, words in [
        ({"drone_0": 0, "drone_1": 7, "drone_2": 0}, "action of drone_1 = 7: .*0 to 6"),
        ({"drone_0": 0, "drone_1": 1}, "action of drone_2 = None"),
        ({"drone_0": 0.5, "drone_1": 1, "drone_2": 1}, "action of drone_0 = 0.5"),
    ]:
        with pytest.raises(ValueError, match=words):
            env.step(actions)


def test_it_flies_over_a_given_city():
    city = CityMap(np.full((12, 15), 25, np.uint8), 20.0, np.zeros((0, 4), np.float32))
    env = parallel_env(WORLD, city=city)
    assert env.env.config.columns == 15 and env.env.cities is not None
    assert env.possible_agents == ["drone_0", "drone_1", "drone_2"]
    assert env.env == jaxqmix.make(WORLD, city=city)
