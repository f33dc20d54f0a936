"""Rounds: who takes part, who is away, who attacks, and what a round changes."""

from __future__ import annotations

import dataclasses

import federated_probes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqmix.config import ConfigError
from jaxqmix.env.domain import ranges
from jaxqmix.federated import local
from jaxqmix.federated.conditions import attacked, draw_away
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.local import allot, make_groups, site_config
from jaxqmix.federated.rounds import enough, make_program
from jaxqmix.federated.sites import find_sites
from jaxqmix.learner.update import pull_to_anchor
from jaxqmix.types import replace
from jaxqmix.validate import MISSION

TINY = dataclasses.replace(MISSION, env=dataclasses.replace(MISSION.env, horizon=10))


def test_places_in_a_round_are_allotted_in_proportion():
    assert allot(5, [10]) == [5]
    assert allot(5, [6, 3, 1]) == [3, 1, 1]
    assert allot(10, [4, 3, 3]) == [4, 3, 3]
    assert allot(3, [8, 1, 1]) == [1, 1, 1]
    with pytest.raises(ConfigError, match="per_round = 1 is not allowed: the swarms have 2 sizes"):
        allot(1, [1, 1])


def test_sites_of_one_size_are_a_group_and_keep_the_clock_of_the_federation():
    federation = FederationConfig(sites=5, drones=(2, 3), rounds=3, local_env_steps=80)
    sites, _ = find_sites(federation, TINY)
    two, three = make_groups(TINY, federation, sites)
    assert two.sites == (0, 2, 4) and three.sites == (1, 3)
    assert (two.chosen, three.chosen) == (3, 2)
    assert (two.config.env.drones, three.config.env.drones) == (2, 3)
    # 40 env steps an iteration: a whole site flies two in a round, one that works half, one.
    assert all(1 <= work <= 2 for group in (two, three) for work in group.work)
    own = site_config(TINY, federation, 2)
    assert own.iterations == 6
    assert own.training.epsilon_decay_steps == TINY.training.epsilon_decay_steps // 5


def test_fedprox_pulls_to_where_the_round_began():
    pull = pull_to_anchor(0.5)
    state = pull.init({"w": jnp.array([1.0, 2.0])})
    grads, after = pull.update({"w": jnp.array([0.1, 0.2])}, state, {"w": jnp.array([3.0, 2.0])})
    np.testing.assert_allclose(grads["w"], [0.1 + 0.5 * 2.0, 0.2])
    assert after is state


def test_a_site_that_diverges_is_turned_away_and_begins_anew(monkeypatch):
    """Its update shows what happened; the optimiser's NaN moments are not kept."""
    federation = FederationConfig(sites=2, per_round=2, minimum=1, local_env_steps=80)
    sites, _ = find_sites(federation, TINY)
    (group,) = make_groups(TINY, federation, sites)
    domain = jax.tree.map(lambda leaf: leaf[0], ranges([sites[0].domain]))
    shapes = jax.eval_shape(lambda: local.begin_site(0, domain, group))
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

    def diverges(state, *_):
        def lost(leaf):
            return leaf * jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        learned = jax.tree.map(lost, state.learner)
        return replace(state, learner=learned, key=state.key + 1)

    start = {"agent": jax.tree.map(jnp.zeros_like, state.learner.parameters["agent"])}
    for iteration, fit in ((diverges, False), (lambda s, *_: replace(s, key=s.key + 1), True)):
        monkeypatch.setattr(local, "train_iteration", iteration)
        after, update, _ = local.local_training(
            state, start, domain, jnp.int32(2), jnp.int32(0), group
        )
        assert np.isfinite(update).all() == fit
        assert local.all_finite(after.learner) and (after.key == state.key + 2).all()
        assert not any(leaf.any() for leaf in jax.tree.leaves(after.learner.parameters["agent"]))


@pytest.mark.parametrize(
    ("rule", "admitted", "turned_away", "expected"),
    [
        ("fedavg", 3, 0, True), ("fedavg", 2, 1, False), ("median", 5, 0, True),
        ("median", 4, 0, False), ("median", 3, 1, True), ("median", 3, 0, False),
        ("krum", 6, 0, False), ("krum", 7, 0, True), ("krum", 5, 1, True), ("krum", 3, 2, True),
    ],
)  # fmt: skip
def test_robust_rules_need_enough_for_the_hostile_ones_that_are_left(
    rule, admitted, turned_away, expected
):
    federation = FederationConfig(per_round=7, aggregate=rule, hostile=2)
    let_in = np.arange(7) < admitted
    arrived = np.arange(7) < admitted + turned_away
    assert bool(enough(jnp.array(let_in), jnp.array(arrived), federation)) == expected


def test_with_noise_a_round_counts_whoever_was_turned_away():
    """Or the global policy would tell, by standing still, whose flights had diverged."""
    federation = FederationConfig(per_round=3, minimum=3, noise=1.0)
    three, two = jnp.array([True, True, True]), jnp.array([True, True, False])
    assert enough(two, three, federation) and not enough(two, two, federation)


def test_bursts_may_be_of_nearly_all_sites():
    config = FederationConfig(dropout=0.95, dropout_pattern="burst")

    def step(before, number):
        away = draw_away(jax.random.fold_in(jax.random.key(0), number), before, number, config)
        return away, away

    _, away = jax.lax.scan(step, jnp.zeros(10, bool), jnp.arange(2000))
    assert abs(away.mean() - 0.95) < 0.02


@pytest.mark.parametrize("pattern", ["random", "periodic", "burst"])
def test_sites_are_away_as_often_as_asked(pattern):
    config = FederationConfig(dropout=0.3, dropout_pattern=pattern)

    def step(before, number):
        key = jax.random.fold_in(jax.random.key(0), number)
        away = draw_away(key, before, number, config)
        return away, away

    _, away = jax.lax.scan(step, jnp.zeros(10, bool), jnp.arange(2000))
    away = np.asarray(away)
    # Bursts of four rounds: the standard error of the mean is about 0.01.
    assert abs(away.mean() - 0.3) < 0.04
    again = (away[1:] & away[:-1]).sum() / away[:-1].sum()
    low, high = {"random": (0.25, 0.35), "periodic": (0.6, 0.7), "burst": (0.7, 0.8)}[pattern]
    assert low < again < high
    if pattern == "periodic":
        assert (away[:10].sum(axis=0) == 3).all() and (away[10:20] == away[:10]).all()


def test_attacks_by_hand():
    updates = {"a": jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
    weight, hostile = jnp.ones(3), jnp.array([False, True, False])
    sent = {
        kind: attacked(jax.random.key(0), updates, weight, hostile, kind)
        for kind in ("sign-flip", "scale", "nan", "weight", "noise", "copy")
    }
    for tree, _ in sent.values():
        np.testing.assert_array_equal(tree["a"][::2], updates["a"][::2])
    middle = {kind: np.asarray(tree["a"][1]) for kind, (tree, _) in sent.items()}
    assert list(middle["sign-flip"]) == [-3, -4] and list(middle["scale"]) == [300, 400]
    assert np.isnan(middle["nan"]).all() and list(middle["copy"]) == [1, 2]
    assert list(middle["weight"]) == [-3, -4] and list(sent["weight"][1]) == [1, 1e9, 1]
    assert np.linalg.norm(middle["noise"]) > 5


@pytest.fixture(name="probes")
def known_sites(monkeypatch):
    federated_probes.use(monkeypatch)


def test_rounds_by_hand(probes):
    federation = FederationConfig(
        sites=4, per_round=3, minimum=2, rounds=4, local_env_steps=80, norm_cap=100.0,
        compression="top-k", dropout=0.4, attackers=1, attack="nan",
    )  # fmt: skip
    sites, _ = find_sites(federation, TINY)
    program = make_program(TINY, federation, sites)
    after, seen = jax.device_get(program.init(0)), set()
    for number in range(6):
        before = after
        state, outcome = program.round(program.place(before))
        after, outcome = jax.device_get((state, outcome))
        reached, hostile = outcome.reached, outcome.site == 3
        work = np.array(program.groups[0].work)[outcome.site]
        assert (outcome.env_steps == np.where(reached, work * 40, 0)).all()
        assert (outcome.verdicts.infinite == (reached & hostile)).all()
        assert (outcome.admitted == (reached & ~hostile)).all()
        trained = np.zeros(4, int)
        trained[outcome.site[reached]] = 1
        assert (after.groups[0].trained - before.groups[0].trained == trained).all()
        # What is sent, and what is kept for the next time, make up the update.
        start, end = (ravel(s.server.weights) for s in (before, after))
        total, weights = np.zeros(start.size), 0
        for site, steps in zip(outcome.site, outcome.env_steps, strict=True):
            owed, kept = (s.residuals[0][site] for s in (before, after))
            if site != 3 and steps:
                towards = (
                    federated_probes.goal(sites[site].domain.visibility[0], start.size) - start
                )
                sent = 0.1 * steps / 40 * towards + owed - kept
                assert 0 < np.count_nonzero(np.abs(sent) > 1e-6) < 0.15 * start.size
                total, weights = total + steps * sent, weights + steps
            elif site != 3:
                assert (owed == kept).all()
        # Fewer than asked for: nothing changes.
        enough = outcome.admitted.sum() >= 2
        expected = start + total / weights if enough else start
        np.testing.assert_allclose(end, expected, atol=1e-5)
        np.testing.assert_allclose(outcome.change, np.linalg.norm(end - start), rtol=1e-4)
        assert outcome.aggregated == enough and after.round == number + 1
        seen |= {bool(enough), *(("away",) if not reached.all() else ())}
    assert seen == {True, False, "away"}


def test_stale_starts_and_swarms_of_two_sizes(probes, monkeypatch):
    # Side by side, as on a GPU.
    monkeypatch.setattr(local, "suggested_scale", lambda: "gpu")
    federation = FederationConfig(
        sites=5, per_round=3, minimum=1, aggregate="fedasync", drones=(2, 3), staleness=2,
        alpha=0.5,
    )  # fmt: skip
    sites, _ = find_sites(federation, TINY)
    program = make_program(TINY, federation, sites)
    state = program.init(0)
    assert set(state.server.weights) == {"agent"}
    known = [ravel(state.server.weights)] * 3
    for _ in range(3):
        state, outcome = jax.device_get(program.round(state))
        assert sorted(np.array(outcome.site) % 2) == [0, 0, 1]
        known = [ravel(state.server.weights), *known[:2]]
        np.testing.assert_array_equal(state.server.history, known)
        state = program.place(state)
    assert not np.array_equal(known[0], known[1])


def ravel(tree):
    """A tree as one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
