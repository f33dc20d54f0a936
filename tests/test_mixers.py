"""Monotonicity and what follows from it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxqmix.config import LearnerConfig
from jaxqmix.learner.mixers import make_mixer

DRONES, STATE = 3, 5


seeds, scales = st.integers(0, 2**31), st.floats(0.1, 10)


def any_weights(parameters, key, scale):
    """Normal weights of a scale in the shape of a mixer's."""
    shapes, tree = jax.tree.flatten(parameters)
    keys = jax.random.split(key, len(shapes))
    weights = [scale * jax.random.normal(k, w.shape) for k, w in zip(keys, shapes, strict=True)]
    return jax.tree.unflatten(tree, weights)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, scale=scales)
def test_qmix_is_monotonic_in_every_drone_under_any_weights(seed, scale):
    init, apply = make_mixer(LearnerConfig(mixer="qmix", mixing_width=8), DRONES, STATE)
    keys = jax.random.split(jax.random.key(seed), 3)
    parameters = any_weights(init(keys[0]), keys[0], scale)
    values = 3 * jax.random.normal(keys[1], (DRONES,))
    state = jax.random.normal(keys[2], (STATE,))
    slope = jax.grad(lambda v: apply(parameters, v, state)[0])(values)
    assert (slope >= 0).all()


@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
@settings(max_examples=25, deadline=None)
@given(seed=seeds, scale=scales)
def test_each_drones_best_action_is_the_teams_best(mixer, seed, scale):
    """No joint action is worth more, under any weights, up to rounding."""
    init, apply = make_mixer(LearnerConfig(mixer=mixer, mixing_width=8), DRONES, STATE)
    keys = jax.random.split(jax.random.key(seed), 3)
    parameters = any_weights(init(keys[0]), keys[0], scale)
    values = np.asarray(jax.random.normal(keys[1], (DRONES, 4)))
    state = jax.random.normal(keys[2], (STATE,))
    pairs = np.array(list(itertools.product(range(4), repeat=DRONES)))
    joint = apply(parameters, values[np.arange(DRONES), pairs], jnp.tile(state, (len(pairs), 1)))
    joint = np.asarray(joint)[:, 0]
    alone = joint[np.all(pairs == np.argmax(values, axis=1), axis=1)].item()
    assert alone >= joint.max() - 1e-5 * np.abs(joint).max()
    assert joint.max() > joint.min()


def test_one_signature():
    values, state = jnp.ones((7, DRONES)), jnp.ones((7, STATE))
    for mixer, size in (("qmix", 1), ("vdn", 1), ("iql", DRONES)):
        init, apply = make_mixer(LearnerConfig(mixer=mixer), DRONES, STATE)
        assert apply(init(jax.random.key(0)), values, state).shape == (7, size)


@pytest.mark.parametrize("drones", [2, 20])
def test_qmix_begins_near_the_sum(drones):
    init, apply = make_mixer(LearnerConfig(mixer="qmix"), drones, STATE)
    parameters = init(jax.random.key(0))
    values = jnp.full(drones, 5.0)
    state = jnp.zeros(STATE)
    assert 0.5 < float(apply(parameters, values, state)[0]) / float(values.sum()) < 2.0
