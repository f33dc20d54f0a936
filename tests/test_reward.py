"""Each term of the team reward, its sign, and when it counts."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxqmix.config import EnvConfig, RewardConfig
from jaxqmix.env import reward
from jaxqmix.types import EAST, HOVER, Events, RewardWeights

CONFIG = EnvConfig(drones=4, horizon=50)
NOBODY = (False, False, False, False)


def events(executed=(HOVER,) * 4, conflict=NOBODY, hit=NOBODY, violation=NOBODY, border=NOBODY):
    """What happened in a step; nothing unless said."""
    flags = (jnp.array(flag) for flag in (conflict, hit, violation, border))
    return Events(jnp.array(executed, jnp.int32), *flags)


def team_reward(happened, weights, newly=0, growth=0, before=0.0, after=0.0, time=1):
    """The reward of a step in a city of 200 coverable cells."""
    values = {f.name: 0.0 for f in dataclasses.fields(RewardConfig)} | weights
    return float(
        reward.team_reward(
            jnp.int32(newly),
            jnp.int32(growth),
            jnp.int32(200),
            jnp.float32(before),
            jnp.float32(after),
            jnp.int32(time),
            happened,
            RewardWeights(**{name: jnp.float32(value) for name, value in values.items()}),
            CONFIG,
        )
    )


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
        float(reward.bonus_term(share[i - 1], share[i], jnp.int32(i), CONFIG)) for i in range(1, 7)
    ]
    assert bonus == pytest.approx([0, 0, 1 - 3 / 50, 0, 0, 0])


def test_earlier_completion_earns_more():
    """The bonus falls by one horizon's share per step and is nothing at the time limit."""
    bonus = [
        float(reward.bonus_term(jnp.float32(0.1), jnp.float32(1.0), jnp.int32(t), CONFIG))
        for t in (1, 25, 50)
    ]
    assert bonus == pytest.approx([0.98, 0.5, 0.0])


def test_an_episode_of_one_mistake_costs_its_weight():
    """Every drone in conflict in every step costs the whole weight."""
    step = team_reward(events(conflict=(True,) * 4), {"conflict": 20.0})
    assert step * CONFIG.horizon == pytest.approx(-20)
