"""That the drones' own best actions are the team's, and what follows from it."""

import functools
import itertools
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_probes import learn, two_step_game

from jaxqmix.config import LearnerConfig
from jaxqmix.learner.mixers import MIXERS, Mixer, make_mixer
from jaxqmix.learner.networks import greedy_actions
from jaxqmix.learner.targets import chosen_values, masked_max

DRONES, ACTIONS, STATE = 3, 4, 5


seeds, scales = st.integers(0, 2**31), st.floats(0.1, 3)


@functools.cache
def make(mixer, drones=DRONES):
    """A small mixer."""
    return make_mixer(LearnerConfig(mixer=mixer, mixing_width=8), drones, ACTIONS, STATE)


compiled = functools.cache(jax.jit)
"""One program for each mixer, over all examples."""


def any_weights(parameters, key, scale):
    """Normal weights of a scale in the shape of a mixer's."""
    shapes, tree = jax.tree.flatten(parameters)
    keys = jax.random.split(key, len(shapes))
    weights = [scale * jax.random.normal(k, w.shape) for k, w in zip(keys, shapes, strict=True)]
    return jax.tree.unflatten(tree, weights)


def any_case(mixer, seed, scale):
    """Weights, values [N, A], a mask in which each drone can do something, and a state."""
    keys = jax.random.split(jax.random.key(seed), 4)
    parameters = any_weights(mixer.init(keys[0]), keys[0], scale)
    values = 3 * jax.random.normal(keys[1], (DRONES, ACTIONS))
    available = jax.random.bernoulli(keys[3], 0.7, (DRONES, ACTIONS)).at[:, 1].set(True)
    return parameters, values, available, jax.random.normal(keys[2], (STATE,))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, scale=scales)
def test_qmix_is_monotonic_in_every_drone_under_any_weights(seed, scale):
    mixer = make("qmix")
    parameters, values, _, state = any_case(mixer, seed, scale)
    nothing = jnp.zeros(DRONES, int)
    slope = jax.grad(lambda v: mixer(parameters, v, v, nothing, state)[0])(values[:, 0])
    assert (slope >= 0).all()


@pytest.mark.parametrize("mixer", ["qmix", "qplex", "vdn"])
@settings(max_examples=25, deadline=None)
@given(seed=seeds, scale=scales)
def test_each_drones_best_action_is_the_teams_best(mixer, seed, scale):
    """No available joint action is worth more, under any weights, up to rounding."""
    mixer = make(mixer)
    parameters, values, available, state = any_case(mixer, seed, scale)
    joint = np.array(list(itertools.product(range(ACTIONS), repeat=DRONES)))
    allowed = np.asarray(available)[np.arange(DRONES), joint].all(axis=1)
    best = jnp.tile(masked_max(values, available), (len(joint), 1))
    chosen, states = values[np.arange(DRONES), joint], jnp.tile(state, (len(joint), 1))
    team = np.asarray(compiled(mixer)(parameters, chosen, best, joint, states))[:, 0]
    alone = team[np.all(joint == greedy_actions(values, available), axis=1)].item()
    assert alone >= team[allowed].max() - 1e-5 * np.abs(team).max()
    assert team.max() > team.min()


@settings(max_examples=8, deadline=None)
@given(seed=seeds, scale=scales)
def test_qplex_weighs_every_drone_and_advantage_positively(seed, scale):
    """Never by zero, not even where all weights are."""
    mixer, actions, ones = make("qplex"), jnp.array([3, 2, 1]), jnp.ones(DRONES)
    parameters, _, _, state = any_case(mixer, seed, scale)
    for weights in (parameters, jax.tree.map(jnp.zeros_like, parameters)):
        module = mixer.module(weights)
        assert (module.importance(actions, state) > 0).all()
        slope = jax.grad(lambda v, m=module: m(v, ones, actions, state)[0])(ones)
        assert (slope > 0).all()


def test_qplex_by_hand():
    """V_tot + A_tot with the weights that its layers give, and gradients to all of them."""
    mixer = make("qplex")
    parameters, values, _, state = any_case(mixer, 7, 1.0)
    actions, best = jnp.array([2, 0, 3]), values.max(axis=-1)
    chosen = chosen_values(values, actions)
    module = mixer.module(parameters)
    weight, importance = np.abs(module.weight(state)), module.importance(actions, state)
    assert (importance != module.importance(actions[::-1], state)).all()
    bias = module.bias(jax.nn.relu(module.bias_hidden(state)))
    expected = sum(
        weight[i] * best[i] + importance[i] * weight[i] * (chosen[i] - best[i])
        for i in range(DRONES)
    )
    team = mixer(parameters, chosen, best, actions, state)
    np.testing.assert_allclose(team, expected + bias, rtol=1e-5)
    greedy = mixer(parameters, best, best, greedy_actions(values, values > -9), state)
    np.testing.assert_allclose(greedy, weight @ best + bias, rtol=1e-5)

    def team_value(parameters, chosen):
        return mixer(parameters, chosen, best, actions, state)[0]

    to_weights, to_values = jax.grad(team_value, argnums=(0, 1))(parameters, chosen)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(to_weights))
    np.testing.assert_allclose(to_values, weight, rtol=1e-5)  # as those of a weighted sum


def test_one_signature():
    """Every mixer that the config knows has an entry, and mixes any batch."""
    names = get_type_hints(LearnerConfig)["mixer"].__args__
    assert set(names) == set(MIXERS)
    values, state, actions = jnp.ones((7, DRONES)), jnp.ones((7, STATE)), jnp.ones((7, DRONES), int)
    for name in names:
        mixer = make(name)
        team = mixer(mixer.init(jax.random.key(0)), values, values, actions, state)
        assert team.shape == (7, DRONES if name == "iql" else 1)


@pytest.mark.parametrize("mixer", ["qmix", "qplex"])
@pytest.mark.parametrize("drones", [2, 20])
def test_mixers_begin_near_the_sum(mixer, drones):
    mixer = make(mixer, drones)
    parameters = mixer.init(jax.random.key(0))
    best = jnp.full(drones, 5.0)
    state, actions = jnp.zeros(STATE), jnp.zeros(drones, int)
    for chosen in (best, best - 1.0):
        team = mixer(parameters, chosen, best, actions, state).item()
        assert 0.5 < team / float(chosen.sum()) < 2.0


class MeanMixer(Mixer):
    """The mean of the drones' values, times a weight for each drone: all that a new mixer is."""

    def __init__(self, config, drones, actions, state, rngs):
        self.weight = nnx.Param(jnp.ones(drones))

    def __call__(self, chosen, best, actions, state):
        return jnp.mean(jnp.abs(self.weight[...]) * chosen, axis=-1, keepdims=True)


def test_a_mixer_of_ones_own():
    """A class is enough to learn with it: a mean can say what a sum can, and no more."""
    batch = two_step_game()
    config = LearnerConfig(hidden=16, layers=1, gamma=0.0, minibatches=1, learning_rate=3e-3)
    learner, learned = learn(config, batch, 1500, mixer=MeanMixer)
    assert learned.parameters["mixer"]["weight"].shape == (2,)
    values, _ = learner.agent(
        learned.parameters["agent"], batch.observation.agents[:-1], batch.hidden_state
    )
    chosen = chosen_values(values, batch.actions)
    team = learner.mixer(
        learned.parameters["mixer"],
        chosen,
        values.max(axis=-1),
        batch.actions,
        batch.observation.state[:-1],
    )
    pairs = team[1, 12:, 0].reshape(2, 2)  # of state 2B
    np.testing.assert_allclose(pairs, [[-1.5, 2.5], [2.5, 6.5]], atol=0.3)
