"""JaxMARL's worlds as ours, and ours as JaxMARL's, with its own rollout manager."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CITY_BLOCK

import jaxqmix
from jaxqmix.config import ConfigError
from jaxqmix.types import replace

pytest.importorskip("jaxmarl", reason='needs jaxmarl: pip install ".[jaxmarl]"')
import jaxmarl

from jaxqmix.adapters.jaxmarl import JaxMarlSwarm, JaxMarlWorld, RolloutManager

KEY = jax.random.key(0)


def test_spread_is_theirs_step_by_step():
    """Equal rewards and observations under equal actions, to an end that is a time limit."""
    inner = jaxmarl.make("MPE_simple_spread_v3")
    world = JaxMarlWorld(inner)
    state, timestep = jax.jit(world.reset)(KEY, ())
    seen, theirs = inner.reset(KEY)
    step, reached = jax.jit(world.step), 0
    for time in range(world.horizon):
        key = jax.random.fold_in(KEY, time)
        actions = jax.random.randint(key, (3,), 0, 5)
        chosen = {agent: actions[index] for index, agent in enumerate(inner.agents)}
        seen, theirs, rewards, dones, _ = inner.step_env(key, theirs, chosen)
        state, timestep = step(key, state, actions, ())
        own = np.stack([seen[agent] for agent in inner.agents])
        np.testing.assert_allclose(timestep.observation.agents[:, : own.shape[1]], own, rtol=1e-5)
        np.testing.assert_allclose(timestep.reward, sum(rewards.values()), rtol=1e-5)
        reached = time + 1
        if dones["__all__"]:
            break
        assert not timestep.truncated
    assert reached == world.horizon and timestep.truncated and not timestep.terminated
    np.testing.assert_array_equal(timestep.observation.agents[:, -3:], np.eye(3))


def test_a_time_limit_of_ones_own_ends_an_episode():
    world = JaxMarlWorld(jaxmarl.make("MPE_simple_spread_v3"), most_steps=3)
    state, timestep = world.reset(KEY, ())
    for time in range(1, 4):
        state, timestep = world.step(KEY, state, jnp.zeros(3, jnp.int32), ())
        assert bool(timestep.truncated) == (time == world.horizon == 3)
        assert not timestep.terminated


def test_a_longer_limit_than_its_own_leaves_its_end_one_of_time():
    world = JaxMarlWorld(jaxmarl.make("MPE_simple_spread_v3"), most_steps=100)
    state, timestep = jax.jit(world.reset)(KEY, ())
    step = jax.jit(world.step)
    while not (timestep.truncated or timestep.terminated):
        state, timestep = step(KEY, state, jnp.zeros(3, jnp.int32), ())
    assert timestep.truncated and not timestep.terminated and state.time == 26


def test_dead_agents_of_smax_may_only_stay():
    from jaxmarl.environments.smax import map_name_to_scenario

    inner = jaxmarl.make("HeuristicEnemySMAX", scenario=map_name_to_scenario("3m"))
    world = JaxMarlWorld(inner)
    state, timestep = jax.jit(world.reset)(KEY, ())
    assert timestep.observation.state.shape == (inner.state_size,)
    step, fewest = jax.jit(world.step), world.actions
    for time in range(world.horizon):
        key = jax.random.fold_in(KEY, time)
        available = timestep.observation.available
        actions = jax.random.categorical(key, jnp.where(available, 0.0, -jnp.inf))
        state, timestep = step(key, state, actions, ())
        fewest = min(fewest, int(timestep.observation.available.sum(axis=1).min()))
        assert available.any(axis=1).all()
        if timestep.terminated | timestep.truncated:
            break
    assert fewest == 1 and timestep.terminated


def test_a_world_without_a_time_limit_asks_for_one():
    class Endless:
        name = "Endless"

    with pytest.raises(ConfigError, match="most_steps = None is not allowed: Endless says"):
        JaxMarlWorld(Endless())


def test_our_world_serves_their_rollout_manager():
    """With our mask, the mixer's state and the team's reward; it begins anew by itself."""
    env = JaxMarlSwarm(jaxqmix.make(replace(CITY_BLOCK, horizon=6)))
    manager = RolloutManager(env, batch_size=4)
    seen, state = manager.batch_reset(KEY)
    assert seen["__all__"].shape == (4, env.state_size)
    assert seen["drone_0"].shape == (4, env.env.features + env.num_agents)
    over = []
    for time in range(7):
        key = jax.random.fold_in(KEY, time)
        mask = manager.get_valid_actions(state)
        for agent in env.agents:
            np.testing.assert_array_equal(
                mask[agent], state.timestep.observation.available[:, env.agents.index(agent)]
            )
        actions = {agent: mask[agent].argmax(axis=-1) for agent in env.agents}
        seen, state, rewards, dones, _ = manager.batch_step(key, state, actions)
        np.testing.assert_array_equal(rewards["__all__"], rewards["drone_0"])
        over.append(bool(dones["__all__"].all()))
    assert over == [False] * 5 + [True, False]


def test_the_guide_says_so(monkeypatch):
    """Its lines, but for the training, which `test_env_contract.py` does in another world."""
    page = Path(__file__).parents[1] / "notebooks" / "guide" / "export.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    given = []
    for name in ("train", "load_policy"):
        monkeypatch.setattr(jaxqmix, name, lambda *_, env: given.append(env))
    names = {"jaxqmix": jaxqmix}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    assert given == [names["world"]] * 2 and names["manager"].batch_size == 8
