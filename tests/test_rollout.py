"""Rollouts, episodes and their metrics: what is stored and counted is what was flown."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from jaxqmix.config import EnvConfig, EvaluationConfig
from jaxqmix.env.mission import (
    episode_metrics,
    fewest_steps,
    init_statistics,
    update_statistics,
)
from jaxqmix.env.observation import feature_slices
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.evaluation import evaluator, success, summarise
from jaxqmix.planners import planner
from jaxqmix.rollout import begin, rollout
from jaxqmix.types import HOVER, Events, Timestep


def test_sequences_hold_what_was_flown(city_block, rough):
    config = dataclasses.replace(city_block, horizon=20, coverage_target=0.7)
    env, policy = UrbanGrid(config, rough), planner("random", config)
    keys = jax.random.split(jax.random.key(0), 3)
    fly = jax.jit(lambda key, swarms: rollout(key, swarms, policy, env, 25))
    swarms = jax.jit(lambda key: begin(jax.random.split(key, 16), env, policy))(keys[0])
    after, flown, sums = jax.device_get(fly(keys[1], swarms))
    length, complete = after.statistics.length, after.statistics.coverage >= 0.7
    assert complete.any() and not complete.all()
    np.testing.assert_array_equal(flown.valid, np.arange(25)[:, None] < length)
    last = (length - 1, np.arange(16))
    np.testing.assert_array_equal(flown.terminated[last], complete)
    np.testing.assert_array_equal(flown.truncated[last], ~complete)
    total = (flown.reward * flown.valid).sum(axis=0)
    np.testing.assert_allclose(total, after.statistics.total_reward, rtol=1e-4, atol=1e-5)
    assert sums["episodes"] == 16 and sums["length"] == sums["flown"] == length.sum()
    # An action is chosen under the observation beside it, and stored as it was commanded.
    chosen = np.take_along_axis(flown.observation.available[:-1], flown.actions[..., None], -1)
    assert chosen[flown.valid].all()
    later, table = flown.observation.agents[1:], feature_slices(config)
    heard = (later[..., table["link"]][..., 2:].sum(axis=-1) == 0) & flown.valid[..., None]
    executed = later[..., table["last_action"]].argmax(axis=-1)
    assert (executed == flown.actions)[heard].all()
    assert (executed != flown.actions)[flown.valid].any()
    # Swarms that are done wait, and count no more.
    _, again, none = jax.device_get(fly(keys[2], after))
    assert not again.valid.any() and none["episodes"] == none["flown"] == 0


def test_an_episode_is_counted_by_hand():
    config, none = EnvConfig(drones=2, horizon=10), (False, False)

    def step(coverage, conflict=none, hit=none, violation=none):
        flags = (jnp.array(flag) for flag in (conflict, hit, violation, none))
        events, goes_on = Events(jnp.full(2, HOVER), *flags), jnp.bool_(False)
        terms = jnp.array([0.5, 0, -0.125, 0, 0, 0, -0.125])
        metrics = {"coverage": jnp.float32(coverage), "reward_terms": terms, **vars(events)}
        return Timestep(None, jnp.float32(0.25), goes_on, goes_on, metrics)

    one = (False, True)
    statistics = init_statistics(step(0.2), config)
    for timestep in (step(0.5, hit=one), step(0.9, conflict=one), step(0.96, violation=one)):
        statistics = update_statistics(statistics, timestep, config)
    found = {name: float(value) for name, value in episode_metrics(statistics, config).items()}
    assert found == pytest.approx({
        "collision_rate": 2 / 6, "collided_drones": 0.5, "violation_rate": 1 / 6,
        "coverage": 0.96, "return": 0.75, "mission_reward": 1.125, "t90": 2, "mission_success": 1,
        "reward_area": 1.5, "reward_bonus": 0, "reward_perimeter": -0.375, "reward_conflict": 0,
        "reward_building_hit": 0, "reward_violation": 0, "reward_energy": -0.375,
    })  # fmt: skip


def test_the_limit_by_hand():
    """1000 cells, 156 seen at the start: 744 to see, by two drones 2 x 62 m / 20 m wide, of whose
    moves three quarters arrive: 2 x 6.2 x 0.75 = 9.3 a step."""
    config = EnvConfig(drones=2, cell_size=20.0, max_altitude=120.0)
    limit = functools.partial(fewest_steps, config=config)
    assert float(limit(1000, 156, 0.25, 0.25)) == pytest.approx(80)
    assert float(limit(1000, 950, 0.25, 0.25)) == 0
    assert 1e4 < float(limit(1000, 0, 1.0, 1.0)) < 1e5  # no command ever arrives


def test_quotient_with_the_limit_is_of_means():
    metrics = {"t90": [30.0, 60.0], "limit": [10.0, 35.0]}
    summary = summarise(metrics, ("t90", "limit"))
    assert summary["t90_over_limit"] == 2
    assert summary["t90_over_limit_ci95"] == pytest.approx([60 / 35, 3])
    assert "t90_over_limit" not in summarise(metrics | {"limit": [0.0, 35.0]}, ("t90", "limit"))


@pytest.mark.parametrize(
    ("target", "coverage", "success"),
    [(1.0, 0.94, 0), (1.0, 0.96, 1), (0.95, 0.96, 1), (0.8, 0.81, 1), (0.8, 0.79, 0)],
)
def test_a_mission_that_ends_earlier_succeeds_earlier(target, coverage, success, city_block):
    config = dataclasses.replace(city_block, coverage_target=target)
    metrics = {"coverage": jnp.float32(coverage), "reward_terms": jnp.zeros(7)}
    reset = Timestep(None, None, None, None, metrics)
    found = episode_metrics(init_statistics(reset, config), config)["mission_success"]
    assert found == success


def test_a_swarm_waits_where_its_mission_ended(city_block, rough):
    config = dataclasses.replace(city_block, coverage_target=0.6)
    policy = planner("random", config)
    rough = dataclasses.replace(rough, packet_loss=(0.2, 0.2))
    fly = evaluator(UrbanGrid(config, rough), lambda _: policy, batch=8, record="all")
    metrics, flown = fly((), 0, 8)
    assert (flown.length < config.horizon).any()
    for episode, length in enumerate(flown.length):
        assert (flown.positions[episode, length:] == flown.positions[episode, length]).all()
        assert not flown.reward[episode, length:].any() and not flown.link[episode, length:].any()
        assert flown.coverage[episode, -1] == flown.coverage[episode, length]
        assert flown.seen_at[episode].max() <= length
        total = flown.reward[episode, :length].sum()
        assert metrics["return"][episode] == pytest.approx(total, abs=1e-5)
        coverable, seen = flown.coverable[episode].sum(), (flown.seen_at[episode] == 0).sum()
        limit = ref.fewest_steps(coverable, seen, float(flown.visibility[episode]), 0.2, config)
        assert metrics["limit"][episode] == pytest.approx(limit, rel=1e-4) and limit > 0
    # Without the perimeter: area, bonus and penalties, from what was recorded.
    weights, drone_steps = rough.reward, config.drones * config.horizon
    counts = {n: getattr(flown.events, n).sum((1, 2)) for n in ("conflict", "building_hit")}
    counts["violation"] = flown.events.violation.sum((1, 2))
    counts["energy"] = (flown.length * config.drones) - np.array(
        [(e[:n] == HOVER).sum() for e, n in zip(flown.events.executed, flown.length, strict=True)]
    )
    expected = weights.area * metrics["coverage"]
    expected -= sum(getattr(weights, name) * n / drone_steps for name, n in counts.items())
    np.testing.assert_allclose(metrics["mission_reward"], expected, atol=1e-5)
    assert (metrics["mission_reward"] > metrics["return"]).all()


@pytest.mark.parametrize(
    ("found", "met"), [((0.0999, 0.501, 0.90), True), ((0.1, 0.5, 0.8999), False)]
)
def test_the_verdict_at_the_criteria(found, met):
    names = ("collision_rate", "return", "coverage")
    verdict = success(dict(zip(names, found, strict=True)), EvaluationConfig())
    assert verdict == dict.fromkeys(names, met)


def test_intervals_are_of_95_percent():
    summary = summarise({"coverage": np.arange(400) % 2}, ("coverage",))
    np.testing.assert_allclose(summary["coverage_ci95"], [0.451, 0.549], atol=0.006)
