"""Each term of the team reward, its sign, and when it counts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_options

from jaxqmix.config import EnvConfig, RewardConfig
from jaxqmix.env import reward
from jaxqmix.env.urban_grid import Parts, UrbanGrid
from jaxqmix.types import EAST, HOVER, Events, RewardWeights

CONFIG = EnvConfig(drones=4, horizon=50)
NOBODY = (False, False, False, False)


def events(executed=(HOVER,) * 4, conflict=NOBODY, hit=NOBODY, violation=NOBODY, border=NOBODY):
    """What happened in a step; nothing unless said."""
    flags = (jnp.array(flag) for flag in (conflict, hit, violation, border))
    return Events(jnp.array(executed, jnp.int32), *flags)


def transition(happened, newly=0, growth=0, before=0.0, after=0.0, time=1):
    """A step in a city of 200 coverable cells."""
    return reward.Transition(
        before=None,
        after=None,
        events=happened,
        newly_seen=jnp.int32(newly),
        perimeter_change=jnp.int32(growth),
        coverage_before=jnp.float32(before),
        coverage=jnp.float32(after),
        coverable=jnp.int32(200),
        time=jnp.int32(time),
    )


def team_reward(happened, weights, **values):
    """The reward of such a step."""
    weights = {f.name: 0.0 for f in dataclasses.fields(RewardConfig)} | weights
    weights = RewardWeights(**{name: jnp.float32(value) for name, value in weights.items()})
    total, parts = reward.team_reward(transition(happened, **values), weights, CONFIG)
    assert float(parts.sum()) == pytest.approx(float(total))
    return float(total)


TERMS = {
    "area": (events(), {"newly": 30}, 30 / 200),
    "bonus": (events(), {"before": 0.5, "after": 0.92, "time": 20}, 1 - 20 / 50),
    "perimeter": (events(), {"growth": 8}, -8 * 20 * 100 / (200 * 20**2)),
    "conflict": (events(conflict=(True, True, False, False)), {}, -2 / 200),
    "building_hit": (events(hit=(False, True, False, False)), {}, -1 / 200),
    "violation": (events(violation=(True, False, True, True)), {}, -3 / 200),
    "energy": (events(executed=(EAST, HOVER, 4, 5)), {}, -3 / 200),
}


@pytest.mark.parametrize("name", TERMS)
def test_sign_and_size_of_each_term(name):
    """Seeing and completing are gains, all else costs, in proportion to the weight."""
    happened, values, expected = TERMS[name]
    assert team_reward(happened, {name: 1.0}, **values) == pytest.approx(expected)
    assert team_reward(happened, {name: 2.5}, **values) == pytest.approx(2.5 * expected)
    others = {other: 1.0 for other in TERMS if other != name}
    assert team_reward(happened, others, **values) == pytest.approx(0.0)


def test_border_costs_nothing_but_energy():
    """Running into the border is no building hit and no violation."""
    happened = events(border=(True, True, True, True))
    assert team_reward(happened, dict.fromkeys(TERMS, 1.0)) == 0


def test_uneventful_hovering_is_free():
    """Nothing seen, nobody moves: the reward is zero."""
    assert team_reward(events(), dict.fromkeys(TERMS, 1.0), before=0.4, after=0.4) == 0


def test_terms_add_up():
    """The team reward is the sum of the weighted terms."""
    happened = events(
        executed=(EAST, EAST, HOVER, 4),
        conflict=(True, True, False, False),
        hit=(False, False, False, True),
        violation=(False, True, False, False),
    )
    weights = {"area": 2.0, "bonus": 0.5, "conflict": 20.0}
    weights |= {"building_hit": 3.0, "violation": 4.0, "energy": 0.02, "perimeter": 0.4}
    expected = 2 * 50 / 200 + 0.5 * (1 - 10 / 50) + 0.4 * 5 * (100 / 20) / 200
    expected -= (20 * 2 + 3 * 1 + 4 * 1 + 0.02 * 3) / 200
    value = team_reward(happened, weights, newly=50, growth=-5, before=0.8, after=0.9, time=10)
    assert value == pytest.approx(expected)


def test_bonus_once():
    """Only the step that first reaches 90 % earns the bonus, at exactly 90 % as well."""
    seen = np.array([100, 170, 179, 180, 190, 190, 200], np.float32)
    share = jnp.asarray(seen / 200)
    bonus = [
        float(reward.bonus_term(transition(events(), 0, 0, share[i - 1], share[i], i), CONFIG))
        for i in range(1, 7)
    ]
    assert bonus == pytest.approx([0, 0, 1 - 3 / 50, 0, 0, 0])


def test_earlier_completion_earns_more():
    """The bonus falls by one horizon's share per step and is nothing at the time limit."""
    bonus = [
        float(reward.bonus_term(transition(events(), 0, 0, 0.1, 1.0, t), CONFIG))
        for t in (1, 25, 50)
    ]
    assert bonus == pytest.approx([0.98, 0.5, 0.0])


def test_an_episode_of_one_mistake_costs_its_weight():
    """Every drone in conflict in every step costs the whole weight."""
    step = team_reward(events(conflict=(True,) * 4), {"conflict": 20.0})
    assert step * CONFIG.horizon == pytest.approx(-20)


def test_the_table_names_every_weight():
    assert [term.name for term in reward.TERMS] == list(TERMS)
    assert set(TERMS) == {f.name for f in dataclasses.fields(RewardConfig)}


def test_an_own_term_is_one_line():
    """A term with a weight of its own, beside the world's."""

    def height(step, config):
        return step.after.position[:, 2].mean() / config.max_altitude

    config = EnvConfig(drones=2, city_width=400.0, city_length=400.0, horizon=9)
    terms = (*reward.TERMS, reward.Term("height", height, -1, 0.5))
    env = UrbanGrid(config, parts=Parts(terms=terms))

    def fly(key):
        draw, reset, step = jax.random.split(key, 3)
        params = env.draw_params(draw)
        state, _ = env.reset(reset, params)
        step = step, state, jnp.full(2, HOVER), params
        return *env.step(*step), UrbanGrid(config).step(*step)[1].reward

    fly = jax.jit(fly, compiler_options=quick_options())
    after, timestep, plain = fly(jax.random.key(0))
    cost = 0.5 * after.position[:, 2].mean() / config.max_altitude
    assert float(timestep.reward) == pytest.approx(float(plain - cost), abs=1e-6)
    assert float(timestep.metrics["reward_terms"][-1]) == pytest.approx(-float(cost), rel=1e-6)
    assert env.mission.names[-1] == "reward_height"
