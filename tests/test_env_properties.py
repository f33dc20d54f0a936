"""What holds in every episode, whatever the city, the weather and the commands."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as some

from jaxqmix.config import ConfigError
from jaxqmix.env import observation, sensing, urban_grid
from jaxqmix.types import EnvParams, RewardWeights, replace

STEPS, SWARMS = 80, 14
"""The same as in `test_env_reference.py`, so that both share one compiled flight."""

WEIGHTS = ("area", "bonus", "perimeter", "conflict", "building_hit", "violation", "energy")


def params_from(**values) -> EnvParams:
    """One swarm's world, calm and clear unless said otherwise."""
    calm = {"building_density": 1.0, "building_height": 1.0, "wind": (0.0, 0.0), "turbulence": 0.0}
    calm |= {"visibility": 1.0, "packet_loss": 0.0, "delay": 0.0, "sensor_noise": 0.0}
    values = {name: jnp.float32(values.get(name, value)) for name, value in calm.items()} | {
        name: value for name, value in values.items() if name == "reward"
    }
    values.setdefault("reward", weights_from(1.0, 0.1, 0.4, 20.0, 3.0, 3.0, 0.02))
    return EnvParams(**values)


def weights_from(*values) -> RewardWeights:
    """Reward weights in the order of `WEIGHTS`."""
    return RewardWeights(**{n: jnp.float32(v) for n, v in zip(WEIGHTS, values, strict=True)})


@some.composite
def any_params(draw) -> EnvParams:
    """Any world that a domain allows."""

    def number(low: float, high: float) -> float:
        return draw(some.floats(low, high, width=32))

    return params_from(
        building_density=number(0, 3),
        building_height=number(0, 3),
        wind=(number(-30, 30), number(-30, 30)),
        turbulence=number(0, 10),
        visibility=number(0.0625, 1),
        packet_loss=number(0, 1),
        delay=number(0, 1),
        sensor_noise=number(0, 50),
        reward=weights_from(*(number(0, 30) for _ in WEIGHTS)),
    )


seeds = some.integers(0, 2**32 - 1)


def repeat(params: EnvParams) -> EnvParams:
    """The same world for every swarm."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (SWARMS, *leaf.shape)), params)


@settings(max_examples=12)
@given(seed=seeds, params=any_params())
def test_nothing_impossible_happens(fly, city_block, seed, params):
    """Coverage never shrinks, nobody is where nobody may be, and all numbers are finite."""
    flights = fly(city_block, STEPS, SWARMS, seed, repeat(params))
    coverage = flights["timesteps"].metrics["coverage"]
    assert np.all(np.diff(coverage, axis=1) >= 0)
    assert np.all((coverage > 0) & (coverage <= 1))
    assert not np.any(~flights["unseen"][:, :-1] & flights["unseen"][:, 1:])
    assert not np.any(flights["timesteps"].terminated & flights["timesteps"].truncated)
    for leaf in jax.tree.leaves(flights["timesteps"]):
        assert np.all(np.isfinite(leaf))
    positions = flights["states"].position
    for swarm in range(0, SWARMS, 3):
        heights = flights["states"].city.heights[swarm, 0].astype(float)
        no_fly = flights["states"].city.no_fly[swarm, 0].astype(float)
        for place in positions[swarm].reshape(-1, 3).astype(float):
            code = ref.obstruction(heights, no_fly, place, city_block)
            if code != ref.FREE:
                near = ref.possible_obstructions(heights, no_fly, place, city_block)
                assert ref.FREE in near, (swarm, place, code)


@settings(max_examples=12)
@given(seed=seeds, params=any_params())
def test_reward_is_the_sum_of_its_terms(fly, take, city_block, seed, params):
    """Every reward follows from the trajectory alone."""
    config = city_block
    flights = fly(config, STEPS, SWARMS, seed, repeat(params))
    weights = {name: float(value) for name, value in vars(params.reward).items()}
    states, rewards = flights["states"], flights["timesteps"].reward
    for swarm in range(0, SWARMS, 5):
        city = take(states.city, swarm, 0)
        heights, no_fly = city.heights.astype(float), city.no_fly.astype(float)
        coverable = ref.coverable_cells(no_fly, float(params.visibility), config)
        seen = coverable.sum() - flights["unseen"][swarm].sum(axis=(1, 2))
        sides = [ref.perimeter(unseen) for unseen in flights["unseen"][swarm]]
        total = 0.0
        for time in range(1, STEPS + 1):
            before, after = states.position[swarm, time - 1 : time + 1].astype(float)
            executed = states.last_action[swarm, time]
            moves = [ref.displacement(action, config) for action in executed]
            code = [
                ref.obstruction(heights, no_fly, place + step, config) if np.any(step) else ref.FREE
                for place, step in zip(before, moves, strict=True)
            ]
            seen_before = 0 if time == 1 else seen[time - 1]
            total += ref.team_reward(
                newly_seen=seen[time] - seen_before,
                growth=sides[time] - (0 if time == 1 else sides[time - 1]),
                seen_before=seen_before,
                seen_after=seen[time],
                coverable=coverable.sum(),
                time=time,
                executed=executed,
                conflict=ref.conflicts(before, after),
                code=code,
                weights=weights,
                config=config,
            )
        assert rewards[swarm].sum() == pytest.approx(total, rel=1e-4, abs=1e-4)


def test_same_key_same_episode(fly, city_block):
    """A flight repeats exactly, and another key flies another one."""
    first, again, other = (fly(city_block, STEPS, SWARMS, seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first["states"].position != other["states"].position)
    cities = first["states"].city.heights[:, 0]
    assert all(np.any(cities[0] != city) for city in cities[1:])


def single_swarm_functions(config):
    """Reset, step and observation of one swarm."""

    def reset(key, params):
        return urban_grid.reset(key, params, config)

    def step(key, state, commands, params):
        return urban_grid.step(key, state, commands, params, config)

    def observe(state, params, noise):
        return observation.observe(state, params, noise, config)

    return reset, step, observe


@functools.cache
def single_swarm(config):
    """Compiled reset, step and observation of one swarm."""
    options = {"compiler_options": {"xla_backend_optimization_level": 0}}
    return [jax.jit(function, **options) for function in single_swarm_functions(config)]


@pytest.fixture(scope="module")
def flights(fly, city_block):
    """Flights of a batch of swarms."""
    return fly(city_block, STEPS, SWARMS, seed=11)


def assert_close(tree, other):
    """Equal but for the rounding of real numbers."""

    def compare(one, two):
        one, two = np.asarray(one), np.asarray(two)
        assert one.dtype == two.dtype and one.shape == two.shape
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-3)
        else:
            np.testing.assert_array_equal(one, two)

    jax.tree.map(compare, tree, other)


def test_batch_equals_single_swarms(flights, take, city_block):
    """A batch of swarms flies as each would alone."""
    reset, step, _ = single_swarm(city_block)
    for swarm in range(3):
        params = take(flights["params"], swarm)
        flight_key = jax.random.split(jax.random.split(jax.random.key(11))[1], SWARMS)[swarm]
        state, timestep = reset(jax.random.split(flight_key)[0], params)
        assert_close(state, take(flights["states"], swarm, 0))
        assert_close(timestep, take(flights["timesteps"], swarm, 0))
        for time in range(STEPS):
            key = jax.random.wrap_key_data(flights["step_keys"][swarm, time])
            state, timestep = step(key, state, flights["commands"][swarm, time], params)
            assert_close(timestep, take(flights["timesteps"], swarm, time + 1))
        assert_close(state, take(flights["states"], swarm, STEPS))


def test_reset_and_step_trace_once(city_block):
    """Other keys, worlds and commands, and the states that step returns, trace nothing anew."""
    chex.clear_trace_counter()
    once = chex.assert_max_traces(n=1)
    reset, step, _ = (jax.jit(once(f)) for f in single_swarm_functions(city_block))
    for seed, visibility in ((0, 0.5), (1, 1.0)):
        key, params = jax.random.key(seed), params_from(visibility=visibility)
        state, _ = jax.eval_shape(reset, key, params)
        for action in range(3):
            commands = jnp.full(city_block.drones, action, jnp.int32)
            state, _ = jax.eval_shape(step, key, state, commands, params)


def test_compiled_equals_eager(flights, take, city_block):
    """Compilation changes nothing but rounding."""
    for swarm, time in ((1, 0), (2, 7), (3, 40)):
        params = take(flights["params"], swarm)
        state = jax.tree.map(jnp.asarray, take(flights["states"], swarm, time))
        key = jax.random.wrap_key_data(flights["step_keys"][swarm, time])
        commands = jnp.asarray(flights["commands"][swarm, time])
        state, timestep = urban_grid.step(key, state, commands, params, city_block)
        assert_close(state, take(flights["states"], swarm, time + 1))
        assert_close(timestep, take(flights["timesteps"], swarm, time + 1))


@settings(max_examples=15)
@given(
    swarm=some.integers(0, SWARMS - 1),
    time=some.integers(0, STEPS),
    order=some.permutations(range(4)),
)
def test_drones_have_no_names(flights, take, city_block, swarm, time, order):
    """Drones in another order make the same observations in that order."""
    state = take(flights["states"], swarm, time)
    assert_same_in_order(state, take(flights["params"], swarm), order, city_block)


def test_ties_of_distance_have_no_names(flights, take, city_block):
    """On the lattice of start pads, teammates are equally far away; two of three are observed."""
    places = np.array([(30, 30, 60), (70, 30, 60), (110, 30, 60), (70, 70, 60)], np.float32)
    state = replace(take(flights["states"], 0, 0), position=places)
    for order in itertools.permutations(range(4)):
        assert_same_in_order(state, take(flights["params"], 0), order, city_block)


def assert_same_in_order(state, params, order, config):
    """Without noise of its own, a drone observes the same wherever it stands in the order."""
    _, _, observe = single_swarm(config)
    params = replace(params, sensor_noise=np.float32(0))
    order = np.array(order)
    per_drone = ("position", "last_action", "link", "obstruction")
    changed = replace(state, **{name: getattr(state, name)[order] for name in per_drone})
    noise = np.ones((config.drones, 3), np.float32)
    plain, permuted = observe(state, params, noise), observe(changed, params, noise)
    np.testing.assert_allclose(permuted.agents, np.asarray(plain.agents)[order], atol=1e-5)
    np.testing.assert_array_equal(permuted.available, np.asarray(plain.available)[order])
    poses = slice(-2 - 3 * config.drones, -2)
    expected = np.asarray(plain.state).copy()
    expected[poses] = expected[poses].reshape(-1, 3)[order].ravel()
    np.testing.assert_allclose(permuted.state, expected, atol=1e-6)


def seek(state, unseen, config, rng) -> np.ndarray:
    """Commands towards the nearest unseen cell; now and then, or where that is blocked, any."""
    commands = np.zeros(config.drones, np.int32)
    rows, columns = np.nonzero(unseen)
    for drone, (x, y, _) in enumerate(np.asarray(state.position)):
        offset_x = (columns + 0.5) * config.cell_size - x
        offset_y = (rows + 0.5) * config.cell_size - y
        nearest = np.argmin(offset_x**2 + offset_y**2)
        if abs(offset_x[nearest]) > abs(offset_y[nearest]):
            command = ref.EAST if offset_x[nearest] > 0 else ref.WEST
        else:
            command = ref.SOUTH if offset_y[nearest] > 0 else ref.NORTH
        available = np.flatnonzero(np.asarray(state.obstruction)[drone] == ref.FREE)
        usable = command in available and rng.random() < 0.7
        commands[drone] = command if usable else rng.choice(available)
    return commands


def test_perfect_episode_returns_one(city_block):
    """The area terms of an episode that sees everything sum to 1, the first footprint included."""
    reset, step, _ = single_swarm(city_block)
    params = params_from(reward=weights_from(1, 0, 0, 0, 0, 0, 0))
    rng = np.random.default_rng(0)
    state, timestep = reset(jax.random.key(5), params)
    coverable = int(state.city.coverable)
    first = int(state.seen)
    assert 0 < first < coverable and timestep.reward == 0
    rewards = []
    for time in range(400):
        unseen = np.asarray(sensing.unpack_unseen(state.unseen, city_block))
        key = jax.random.fold_in(jax.random.key(6), time)
        state, timestep = step(key, state, seek(state, unseen, city_block, rng), params)
        rewards.append(float(timestep.reward))
        if timestep.metrics["coverage"] == 1:
            break
    assert timestep.metrics["coverage"] == 1
    assert rewards[0] >= first / coverable
    assert sum(rewards) == pytest.approx(1, abs=1e-5)


def test_groups_that_drones_are_blind_to_are_zero(city_block):
    """And nothing else is; a group that does not exist is refused."""
    config = dataclasses.replace(city_block, blind_to=("unseen_3", "teammates"))
    reset, _, observe = single_swarm(city_block)
    _, _, blind = single_swarm(config)
    params = params_from(wind=(3.0, -2.0))
    state, _ = reset(jax.random.key(0), params)
    noise = jnp.zeros((city_block.drones, 3))
    seen = observe(state, params, noise).agents
    found = blind(state, params, noise).agents
    table = observation.feature_slices(config)
    assert (seen[:, table["unseen_3"]] != 0).any()
    for name, part in table.items():
        expected = 0.0 if name in config.blind_to else seen[:, part]
        np.testing.assert_array_equal(found[:, part], expected)
    with pytest.raises(ConfigError, match=r"env.blind_to = view .* unseen_3"):
        observation.seen_features(dataclasses.replace(config, blind_to=("view",)))
