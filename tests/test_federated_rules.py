"""Aggregation, the door, compression and privacy: hand-computed, and against NumPy."""

from __future__ import annotations

import federated_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxqmix.config import ConfigError
from jaxqmix.federated import aggregate, compression, door, privacy
from jaxqmix.federated.config import RULES, FederationConfig, fewest, from_dict

THREE = jnp.array([[1.0, 10.0], [2.0, 20.0], [9.0, 30.0]])
ALL = jnp.ones(3, bool)
SITES = 7


def tree(flat):
    """Updates [M, 5] as a tree of two leaves, one of them a matrix."""
    flat = jnp.asarray(flat, jnp.float32)
    return {"a": flat[:, :3], "b": {"c": flat[:, 3:].reshape(-1, 1, 2)}}


def flat(one):
    """One update as [5]."""
    return np.concatenate([np.ravel(one["a"]), np.ravel(one["b"]["c"])])


@st.composite
def rounds(draw):
    """Updates [M, 5], weights and who arrived."""
    seed = draw(st.integers(0, 10_000))
    random = np.random.default_rng(seed)
    updates = random.normal(size=(SITES, 5)).astype(np.float32)
    if draw(st.booleans()):
        updates[1] = updates[0]  # a copy: ties
    weight = random.integers(1, 100, SITES).astype(np.float32)
    arrived = np.array(draw(st.lists(st.booleans(), min_size=SITES, max_size=SITES)))
    return updates, weight, arrived


def hidden(updates, arrived):
    """The updates with NaN in place of those that did not arrive: they must not matter."""
    return tree(np.where(arrived[:, None], updates, np.nan))


def test_hand_computed():
    mean = aggregate.mean(THREE, jnp.array([1.0, 1.0, 2.0]), ALL)
    np.testing.assert_allclose(mean, [21 / 4, 90 / 4])
    np.testing.assert_allclose(aggregate.median(THREE, ALL), [2, 20])
    np.testing.assert_allclose(aggregate.trimmed_mean(THREE, ALL, 1), [2, 20])
    np.testing.assert_allclose(aggregate.trimmed_mean(THREE, ALL, 0), [4, 20])
    # Two of three: the median is the mean of both.
    np.testing.assert_allclose(aggregate.median(THREE, jnp.array([True, False, True])), [5, 20])


def test_krum_chooses_from_the_crowd():
    points = jnp.array([[0.0], [1.0], [3.0], [4.0], [100.0]])
    everyone = jnp.ones(5, bool)
    # n - f - 2 = 2 nearest: 0: 1 + 9, 1: 1 + 4, 3: 1 + 4, 4: 1 + 9, 100: 96^2 + 97^2.
    scores = aggregate.krum_scores(points, everyone, 1)
    np.testing.assert_allclose(scores, [10, 5, 5, 10, 96**2 + 97**2])
    np.testing.assert_allclose(aggregate.krum(points, everyone, 1), [1.0])
    np.testing.assert_allclose(aggregate.multi_krum(points, everyone, 1, jnp.int32(4)), [2.0])
    assert fewest("krum", 1) == 5 and fewest("multi-krum", 2) == 7 and fewest("median", 2) == 5


SHARE = np.float32(0.9) / np.sqrt(1.0 + np.arange(SITES, dtype=np.float32))


@jax.jit
def every_rule(updates, weight, arrived):
    """All rules in one program."""
    server = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), updates)
    keep = jnp.maximum(arrived.sum() - 1, 1)
    return {
        "mean": aggregate.mean(updates, weight, arrived),
        "median": aggregate.median(updates, arrived),
        "trimmed": aggregate.trimmed_mean(updates, arrived, 2),
        "krum": aggregate.krum(updates, arrived, 1),
        "multi-krum": aggregate.multi_krum(updates, arrived, 1, keep),
        "async": aggregate.mix_async(server, updates, arrived, SHARE),
    }


@settings(max_examples=40)
@given(rounds())
def test_rules_equal_the_reference(drawn):
    updates, weight, arrived = drawn
    fast = every_rule(hidden(updates, arrived), weight, arrived)
    slow = {
        "mean": reference.mean(updates, weight, arrived),
        "median": reference.median(updates, arrived),
        "trimmed": reference.trimmed_mean(updates, arrived, 2),
        "krum": reference.multi_krum(updates, arrived, 1, 1),
        "multi-krum": reference.multi_krum(updates, arrived, 1, max(int(arrived.sum()) - 1, 1)),
        "async": reference.mix_async(np.zeros(5), updates, arrived, SHARE),
    }
    for name, expected in slow.items():
        np.testing.assert_allclose(flat(fast[name]), expected, rtol=2e-5, atol=1e-5, err_msg=name)


def test_old_updates_count_less():
    np.testing.assert_allclose(aggregate.staleness_share(jnp.arange(SITES), 0.9), SHARE, rtol=1e-6)


def test_robust_rules_stay_with_the_crowd_and_the_mean_does_not():
    random = np.random.default_rng(0)
    honest = random.normal(1.0, 0.1, (5, 5))
    updates = tree(np.concatenate([honest, np.full((2, 5), -100.0)]))
    arrived, weight = jnp.ones(7, bool), jnp.ones(7)
    for rule in ("median", "trimmed-mean", "krum", "multi-krum"):
        config = FederationConfig(per_round=7, aggregate=rule, hostile=2)
        combined = aggregate.make_aggregator(config).combine(updates, weight, arrived)
        assert np.abs(flat(combined) - 1).max() < 0.3, rule
    assert flat(aggregate.mean(updates, weight, arrived)).max() < -20


def test_fedavgm_and_fedadam_by_hand():
    update = jnp.array([1.0, -2.0])
    config = FederationConfig(aggregate="fedavgm", server_rate=0.5, server_momentum=0.5)
    rule = aggregate.make_aggregator(config)
    server, moments = rule.step(jnp.zeros(2), update, rule.begin(jnp.zeros(2)))
    np.testing.assert_allclose(server, [0.5, -1.0])
    server, moments = rule.step(server, update, moments)
    np.testing.assert_allclose(server, [0.5 + 0.75, -1.0 - 1.5])
    config = FederationConfig(aggregate="fedadam", server_rate=0.1)
    rule = aggregate.make_aggregator(config)
    server, _ = rule.step(jnp.zeros(2), update, rule.begin(jnp.zeros(2)))
    # m = 0.1 d, v = 0.99 tau^2 + 0.01 d^2.
    step = [0.1 * d / (np.sqrt(0.99e-6 + 0.01 * d * d) + 1e-3) for d in (1.0, -2.0)]
    np.testing.assert_allclose(server, 0.1 * np.array(step), rtol=1e-5)


def test_every_rule_gives_zeros_when_none_arrived():
    for rule in RULES:
        config = FederationConfig(aggregate=rule)
        combine = jax.jit(aggregate.make_aggregator(config).combine)
        nothing = combine(tree(np.full((5, 5), np.nan)), jnp.ones(5), jnp.zeros(5, bool))
        assert (flat(nothing) == 0).all(), rule


admit = jax.jit(door.admit)


@settings(max_examples=40)
@given(rounds(), st.sampled_from([None, np.nan, np.inf, -np.inf, 1e30]), st.integers(0, 3))
def test_the_door_equals_the_reference(drawn, poison, which):
    updates, weight, arrived = drawn
    if poison is not None:
        updates[2, 3] = poison
    weight[4] = (weight[4], np.nan, -1.0, 1e9)[which]
    fast = jax.device_get(admit(tree(updates), weight, arrived, 3.0, 3.0))
    # 1e30 squared leaves float32: such an update is turned away as infinite.
    slow_updates = np.where(np.abs(updates) > 1e19, np.inf, updates.astype(np.float64))
    slow = reference.admit(slow_updates, weight, arrived, 3.0, 3.0)
    for site in range(SITES):
        one = jax.tree.map(lambda leaf: leaf[site], fast[0])  # noqa: B023
        np.testing.assert_allclose(flat(one), slow[0][site], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fast[1], slow[1], rtol=1e-6)
    np.testing.assert_array_equal(fast[2], slow[2])


def test_the_door_says_why():
    updates = np.ones((7, 5), np.float32)
    updates[0, 0], updates[1] = np.nan, 100.0
    weight = jnp.array([1.0, 1.0, 1e9, np.nan, 1.0, 1.0, 1.0])
    arrived = jnp.array([True] * 6 + [False])
    _, capped, admitted, said = door.admit(tree(updates), weight, arrived, 3.0, 3.0)
    assert list(admitted) == [False, True, True, False, True, True, False]
    assert list(said.infinite) == [True] + [False] * 6
    assert list(np.flatnonzero(said.weight)) == [3]
    assert list(np.flatnonzero(said.capped)) == [2] and capped[2] == 3.0
    assert list(np.flatnonzero(said.clipped)) == [1]


def test_foreign_updates_are_refused_by_name():
    like = {"agent": {"dense": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    good = door.leaves_by_name(like)
    assert set(good) == {"agent.dense", "agent.bias"}
    same = door.check(good, like)
    assert same["agent"]["dense"] is good["agent.dense"]
    wrong = {
        "agent.bias is missing": {"agent.dense": good["agent.dense"]},
        "agent.more is not known": good | {"agent.more": np.zeros(1, np.float32)},
        r"agent.bias has shape \(4,\)": good | {"agent.bias": np.zeros(4, np.float32)},
        "agent.bias has type float64": good | {"agent.bias": np.zeros(3)},
        "agent.bias holds infinite": good | {"agent.bias": np.full(3, np.nan, np.float32)},
    }
    for message, update in wrong.items():
        with pytest.raises(door.UpdateRefused, match=message):
            door.check(update, like)


SHAPES = {"w": jnp.zeros((40, 30)), "b": jnp.zeros(30)}


def random_update(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {"w": jax.random.normal(keys[0], (40, 30)), "b": jax.random.normal(keys[1], (30,))}


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("none", 4 * 1230),
        ("int8", 1230 + 2 * 4),
        ("top-k", 8 * (120 + 3)),
        ("low-rank", 4 * (2 * 70 + 30)),
    ],
)
def test_bytes_and_shapes_of_messages(kind, size):
    codec = compression.make_codec(FederationConfig(compression=kind, rank=2), SHAPES)
    assert compression.message_bytes(codec, SHAPES) == size
    update = random_update(0)
    message = codec.encode(jax.random.key(1), update)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(message)) == size
    decoded = codec.decode(message)
    assert jax.tree.map(jnp.shape, decoded) == jax.tree.map(jnp.shape, update)
    if kind == "none":
        assert (decoded["w"] == update["w"]).all()


def test_rounding_by_chance_is_exact_on_average():
    values = jnp.linspace(-1.0, 1.0, 101)
    keys = jax.random.split(jax.random.key(0), 4000)
    several = jax.vmap(lambda key: compression.dequantise(*compression.quantise(key, values)))(keys)
    step = 1 / 127
    assert jnp.abs(several - values).max() <= step * 1.001
    # The standard error of a mean of 4000 is at most step / 2 / sqrt(4000).
    assert jnp.abs(several.mean(axis=0) - values).max() < 5 * step / 2 / 4000**0.5
    assert (compression.dequantise(*compression.quantise(keys[0], jnp.zeros(5))) == 0).all()


def test_top_k_by_hand_and_error_feedback():
    values = jnp.array([[1.0, -5.0], [0.5, 3.0]])
    places, kept = compression.sparsify(values, 0.5)
    assert list(places) == [1, 3] and list(kept) == [-5.0, 3.0]
    np.testing.assert_array_equal(
        compression.densify(places, kept, (2, 2)), [[0.0, -5.0], [0.0, 3.0]]
    )
    # With error feedback, what is sent adds up to what was meant, but for the last residual.
    codec = compression.make_codec(FederationConfig(compression="top-k"), SHAPES)
    assert codec.feedback
    residual, sent, meant = SHAPES, SHAPES, SHAPES
    for seed in range(10):
        update = random_update(seed)
        meant = jax.tree.map(jnp.add, meant, update)
        whole = jax.tree.map(jnp.add, update, residual)
        decoded = codec.decode(codec.encode(jax.random.key(seed), whole))
        sent = jax.tree.map(jnp.add, sent, decoded)
        residual = jax.tree.map(jnp.subtract, whole, decoded)
    np.testing.assert_allclose(sent["w"] + residual["w"], meant["w"], atol=1e-4)
    assert jnp.abs(residual["w"]).max() < 10


def test_low_rank_keeps_a_matrix_of_that_rank():
    left, right = jax.random.normal(jax.random.key(0), (2, 30, 2))
    matrix = left @ right.T
    p, q = compression.low_rank(jax.random.key(1), matrix, 2)
    np.testing.assert_allclose(p @ q.T, matrix, atol=1e-3)
    p, q = compression.low_rank(jax.random.key(1), jnp.zeros((6, 4)), 2)
    assert (p @ q.T == 0).all()


def test_private_mean_by_hand():
    updates = {"a": jnp.array([[3.0, 4.0], [0.3, 0.4], [7.0, 7.0]])}
    arrived = jnp.array([True, True, False])
    mean, clip = privacy.private_mean(
        jax.random.key(0), updates, arrived, jnp.float32(1.0), noise=1e-6
    )
    # (0.6 + 0.3) / 3 and (0.8 + 0.4) / 3; one of two lies below the norm, so it stays.
    np.testing.assert_allclose(mean["a"], [0.3, 0.4], atol=1e-4)
    np.testing.assert_allclose(clip, 1.0, atol=1e-4)
    _, clip = privacy.private_mean(jax.random.key(0), updates, arrived, jnp.float32(10.0), 1e-6)
    np.testing.assert_allclose(clip, 10 * np.exp(-0.2 / 3), rtol=1e-4)


def test_noise_has_the_size_that_is_accounted():
    zeros, arrived = {"a": jnp.zeros((4, 20_000))}, jnp.ones(4, bool)
    mean, _ = privacy.private_mean(jax.random.key(0), zeros, arrived, jnp.float32(2.0), 1.1)
    of_sum, of_count = privacy.split_noise(1.1)
    np.testing.assert_allclose(mean["a"].std(), of_sum * 2.0 / 4, rtol=0.03)
    # Both together are one Gaussian of noise 1.1: 1/z^2 adds up; the count's sensitivity is half.
    np.testing.assert_allclose(of_sum**-2 + (2 * of_count) ** -2, 1.1**-2)


def test_epsilon_spent():
    pytest.importorskip("dp_accounting", reason="needs the extra privacy")
    everyone = privacy.epsilon_spent(1, 10, 10, 2.0, 1e-5)
    # One Gaussian of noise 1: between its exact epsilon, 4.38 (Balle and Wang 2018), and Dwork's.
    assert 4.38 < everyone < 5.3
    some = privacy.epsilon_spent(1, 10, 5, 2.0, 1e-5)
    more = privacy.epsilon_spent(20, 10, 5, 2.0, 1e-5)
    assert some < everyone < more
    assert privacy.epsilon_spent(20, 10, 5, 4.0, 1e-5) < more
    assert privacy.epsilon_spent(0, 10, 5, 2.0, 1e-5) == 0
    assert privacy.epsilon_spent(5, 10, 5, 0.0, 1e-5) == float("inf")
    config = FederationConfig(noise=1.1, epsilon=1.0)
    with pytest.raises(ConfigError, match=r"epsilon = 1.0 is not allowed: 40 rounds spend"):
        privacy.require_budget(config, 10, 5)
    privacy.require_budget(FederationConfig(noise=1.1), 10, 5)


def test_without_noise_everything_is_spent():
    privacy.require_budget(FederationConfig(), 10, 5)
    with pytest.raises(ConfigError, match=r"epsilon = 3.0 is not allowed: 40 rounds spend inf"):
        privacy.require_budget(FederationConfig(epsilon=3.0), 10, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_round": 11}, "per_round = 11 is not allowed: must be at most sites = 10"),
        ({"minimum": 6}, "minimum = 6 is not allowed: must be at most per_round = 5"),
        ({"aggregate": "mode"}, "aggregate = mode is not allowed: must be one of fedavg"),
        ({"aggregate": "krum", "hostile": 2}, "hostile = 2 is not allowed: krum needs at least 7"),
        ({"aggregate": "median", "hostile": 3}, "median needs at least 7"),
        ({"aggregate": "trimmed-mean", "hostile": 3}, "trimmed-mean needs at least 7"),
        ({"aggregate": "multi-krum", "hostile": 2}, "multi-krum needs at least 7"),
        ({"attackers": 11}, "attackers = 11 is not allowed: must be at most sites = 10"),
        ({"aggregate": "krum", "noise": 1.0}, "noise = 1.0 is not allowed: differential privacy"),
        ({"dropout": 1.5}, "dropout = 1.5 is not allowed: must lie between 0 and 1"),
        ({"sites": 2.5}, "sites = 2.5 is not allowed: must be a whole number"),
        ({"rounds": 0}, "rounds = 0 is not allowed: must be at least 1"),
        ({"noise": float("nan")}, "noise = nan is not allowed"),
        ({"keep_share": 0.0}, "keep_share = 0.0 is not allowed: must be greater than 0"),
        ({"compression": "zip"}, "compression = zip is not allowed: must be one of none, int8"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings, message):
    with pytest.raises(ConfigError, match="^" + message.replace("(", r"\(") + "|" + message):
        FederationConfig(**settings)
    with pytest.raises(ConfigError, match="setting colour is not known"):
        from_dict({"colour": 1})
