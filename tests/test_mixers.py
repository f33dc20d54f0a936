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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10))
def test_qmix_is_monotonic_in_every_drone_under_any_weights(seed, scale):
    initialise, apply = make_mixer(LearnerConfig(mixer="qmix", mixing_width=8), DRONES, STATE)
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes, tree = jax.tree.flatten(initialise(keys[0]))
    noise = jax.random.split(keys[0], len(shapes))
    weights = [scale * jax.random.normal(k, w.shape) for k, w in zip(noise, shapes, strict=True)]
    parameters = jax.tree.unflatten(tree, weights)
    values = 3 * jax.random.normal(keys[1], (DRONES,))
    state = jax.random.normal(keys[2], (STATE,))
    slope = jax.grad(lambda v: apply(parameters, v, state)[0])(values)
    assert (slope >= 0).all()


@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
def test_each_drones_best_action_is_the_teams_best(mixer):
    initialise, apply = make_mixer(LearnerConfig(mixer=mixer), 2, STATE)
    keys = jax.random.split(jax.random.key(3), 3)
    parameters = initialise(keys[0])
    values = jax.random.normal(keys[1], (2, 4))
    state = jax.random.normal(keys[2], (STATE,))
    joint = {
        pair: float(
            apply(parameters, jnp.array([values[0, pair[0]], values[1, pair[1]]]), state)[0]
        )
        for pair in itertools.product(range(4), repeat=2)
    }
    assert max(joint, key=joint.get) == tuple(np.argmax(values, axis=1))


def test_one_signature():
    values, state = jnp.ones((7, DRONES)), jnp.ones((7, STATE))
    for mixer, size in (("qmix", 1), ("vdn", 1), ("iql", DRONES)):
        initialise, apply = make_mixer(LearnerConfig(mixer=mixer), DRONES, STATE)
        assert apply(initialise(jax.random.key(0)), values, state).shape == (7, size)


@pytest.mark.parametrize("drones", [2, 20])
def test_qmix_begins_near_the_sum(drones):
    initialise, apply = make_mixer(LearnerConfig(mixer="qmix"), drones, STATE)
    parameters = initialise(jax.random.key(0))
    values = jnp.full(drones, 5.0)
    state = jnp.zeros(STATE)
    assert 0.5 < float(apply(parameters, values, state)[0]) / float(values.sum()) < 2.0
