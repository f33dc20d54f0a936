"""The learner on problems whose values are known."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learner_probes import MATRIX_GAME, learn, matrix_game, sequences, two_step_game

from jaxqmix.config import LearnerConfig
from jaxqmix.learner import replay, update
from jaxqmix.learner.networks import AgentNetwork, epsilon_greedy, greedy_actions, hidden_state_size
from jaxqmix.learner.targets import chosen_values
from jaxqmix.learner.update import ema_step_size, make_optimiser, td_loss

CONFIG = LearnerConfig(
    hidden=32,
    layers=1,
    mixing_width=8,
    gamma=0.5,
    trace=0.0,
    learning_rate=3e-3,
    learning_rate_hold=0.7,
    epochs=1,
    minibatches=1,
    max_gradient_norm=100.0,
)


def value_of(learner, learned, batch, time):
    """Values of the chosen actions of the first sequence at a time."""
    agents, _ = learner.agent(
        learned.parameters["agent"], batch.observation.agents, batch.hidden_state
    )
    return np.asarray(agents[time, 0, 0])


@pytest.mark.parametrize(
    ("terminated", "truncated", "value"),
    # A reward of 1 for ever, seen one step at a time in one state: a time limit does not change
    # what the state is worth, 1 / (1 - 0.5); the end of the mission does.
    [(False, False, 2.0), (False, True, 2.0), (True, False, 1.0)],
)
def test_time_limits_bootstrap_and_terminations_do_not(terminated, truncated, value):
    batch = sequences(
        states=[[0, 0], [0, 0]],
        actions=[[[0], [1]]],
        reward=[[1.0, 1.0]],
        terminated=[[terminated] * 2],
        truncated=[[truncated] * 2],
    )
    learner, learned = learn(dataclasses.replace(CONFIG, mixer="vdn"), batch, 800)
    np.testing.assert_allclose(value_of(learner, learned, batch, 0), value, atol=0.05)


def test_a_reward_one_step_away_is_discounted_once():
    batch = sequences(
        states=[[0, 0], [1, 1], [2, 2]],
        actions=[[[0], [1]], [[0], [1]]],
        reward=[[0.0, 0.0], [1.0, 1.0]],
        terminated=[[False] * 2, [True] * 2],
        truncated=[[False] * 2] * 2,
    )
    learner, learned = learn(dataclasses.replace(CONFIG, mixer="vdn"), batch, 800)
    np.testing.assert_allclose(value_of(learner, learned, batch, 0), 0.5, atol=0.05)
    np.testing.assert_allclose(value_of(learner, learned, batch, 1), 1.0, atol=0.05)


def test_two_step_game_of_the_qmix_paper():
    """QMIX recovers the payoffs of state 2B and takes the branch worth 8; VDN cannot."""
    batch = two_step_game()
    config = dataclasses.replace(CONFIG, gamma=0.99, mixing_width=16)
    tables, branches = {}, {}
    for mixer in ("qmix", "vdn"):
        learner, learned = learn(dataclasses.replace(config, mixer=mixer), batch, 4000)
        parameters = learned.parameters
        values, _ = learner.agent(parameters["agent"], batch.observation.agents, batch.hidden_state)
        # Play 12 goes to state 2B; the drones' values there, for every joint action.
        there, state = values[1, 12], batch.observation.state[1, 12]
        tables[mixer] = np.array(
            [
                [
                    learner.mixer(
                        parameters["mixer"],
                        jnp.stack([there[0, row], there[1, column]]),
                        there.max(axis=-1),
                        jnp.array([row, column]),
                        state,
                    )[0]
                    for column in range(2)
                ]
                for row in range(2)
            ]
        )
        branches[mixer] = int(jnp.argmax(values[0, 0, 0]))
    np.testing.assert_allclose(tables["qmix"], [[0, 1], [1, 8]], atol=0.3)
    np.testing.assert_allclose(tables["vdn"], [[-1.5, 2.5], [2.5, 6.5]], atol=0.3)
    assert branches == {"qmix": 1, "vdn": 0}


def joint_values(learner, learned, batch):
    """The team's value of every play of the first step."""
    values, _ = learner.agent(
        learned.parameters["agent"], batch.observation.agents[:1], batch.hidden_state
    )
    chosen, actions = chosen_values(values, batch.actions[:1]), batch.actions[:1]
    state = batch.observation.state[:1]
    team = learner.mixer(learned.parameters["mixer"], chosen, values.max(axis=-1), actions, state)
    return np.asarray(team[0, :, 0]), np.asarray(jnp.argmax(values[0, 0], axis=-1))


def test_matrix_game_that_no_monotonic_mixer_can_say():
    """QPLEX learns every payoff; QMIX cannot say that a pair is worth less than both its actions.

    The drones begin with the best pair in mind: from equal values and with all pairs equally often,
    QPLEX often settles for a safe pair, for on average over what the other does, action 0 earns
    less.
    """
    batch, tables = matrix_game(), {}

    def hopeful(parameters):
        head = parameters["agent"]["advantage"]
        bias = head["bias"] + jnp.array([6.0, 0.0, 0.0])
        return parameters | {"agent": parameters["agent"] | {"advantage": head | {"bias": bias}}}

    config = dataclasses.replace(CONFIG, hidden=8, mixing_width=64, learning_rate=1e-2)
    for mixer in ("qplex", "qmix"):
        settings = dataclasses.replace(config, mixer=mixer)
        learner, learned = learn(settings, batch, 1000, actions=3, begun=hopeful)
        tables[mixer], greedy = joint_values(learner, learned, batch)
        if mixer == "qplex":
            assert greedy.tolist() == [0, 0]
    np.testing.assert_allclose(tables["qplex"], MATRIX_GAME.ravel(), atol=0.3)
    assert np.abs(tables["qmix"] - MATRIX_GAME.ravel()).max() > 3


def test_steps_that_are_not_valid_do_not_count():
    batch = two_step_game()
    learner, learned = learn(CONFIG, batch, 1)
    targets = jnp.zeros((2, 16, 1))
    valid = batch.valid.at[:, 3:].set(False)
    masked = dataclasses.replace(batch, valid=valid)
    spoiled = dataclasses.replace(masked, actions=masked.actions.at[:, 3:].set(0))
    poisoned = targets.at[:, 3:].set(1e6)
    clean = td_loss(learned.parameters, masked, targets, learner.agent, learner.mixer)[0]
    dirty = td_loss(learned.parameters, spoiled, poisoned, learner.agent, learner.mixer)[0]
    assert clean == dirty
    assert clean != td_loss(learned.parameters, batch, targets, learner.agent, learner.mixer)[0]


def test_recurrent_agent_carries_its_memory():
    config = dataclasses.replace(CONFIG, network="gru")
    apply = AgentNetwork(config, 4, 3)
    parameters = apply.init(jax.random.key(0))
    observation = jax.random.normal(jax.random.key(1), (6, 2, 4))
    hidden_state = jnp.zeros((2, hidden_state_size(config)))
    whole, last = apply(parameters, observation, hidden_state)
    first, middle = apply(parameters, observation[:3], hidden_state)
    second, end = apply(parameters, observation[3:], middle)
    np.testing.assert_allclose(whole, jnp.concatenate([first, second]), rtol=1e-5)
    np.testing.assert_allclose(last, end, rtol=1e-5)
    assert not np.allclose(second, apply(parameters, observation[3:], hidden_state)[0])


def test_masked_actions_are_never_chosen():
    values = jnp.tile(jnp.array([9.0, 1.0, 2.0]), (500, 1))
    available = jnp.tile(jnp.array([False, True, True]), (500, 1))
    assert (greedy_actions(values, available) == 2).all()
    chosen = epsilon_greedy(jax.random.key(0), values, available, jnp.float32(1.0))
    assert set(np.unique(chosen)) == {1, 2}
    half = epsilon_greedy(jax.random.key(0), values, available, jnp.float32(0.5))
    assert 0.15 < float((half == 1).mean()) < 0.35


def test_replay_overwrites_the_oldest_and_draws_what_was_stored():
    batch = two_step_game()
    ring = replay.empty(batch, 24)
    marked = [dataclasses.replace(batch, reward=jnp.full((2, 16), v)) for v in (1.0, 2.0)]
    ring = replay.add(ring, marked[0])
    assert int(ring.size) == 16
    assert (replay.sample(jax.random.key(0), ring, 64).reward == 1.0).all()
    ring = replay.add(ring, marked[1])
    assert int(ring.size) == 24 and int(ring.position) == 8
    assert sorted(np.unique(ring.data.reward[:8])) == [2.0]
    assert sorted(np.unique(ring.data.reward[8:16])) == [1.0]
    drawn = replay.sample(jax.random.key(1), ring, 64)
    assert drawn.observation.agents.shape == (3, 64, 2, 5)
    assert drawn.observation.agents.dtype == jnp.float32
    assert set(np.unique(drawn.reward)) == {1.0, 2.0}


def test_target_and_average_follow_the_weights():
    config = dataclasses.replace(CONFIG, target_update=0.25, average_decay=0.4, learning_rate=0.1)
    config = dataclasses.replace(config, learning_rate_end=1.0)  # whatever the number of calls
    states = [learn(config, two_step_game(), calls)[1] for calls in range(4)]
    for before, after, share in zip(states, states[1:], (1.0, 0.75, 0.6), strict=False):
        for found, old, part in (
            (after.target, before.target, 0.25),
            (after.ema, before.ema, share),
        ):
            expected = jax.tree.map(lambda a, b, p=part: a + p * (b - a), old, after.parameters)
            chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(after.parameters, before.parameters, atol=1e-3)


def test_untrained_weights_are_forgotten_before_the_decay_takes_over():
    shares = np.asarray(ema_step_size(np.arange(400), 0.99))
    np.testing.assert_allclose(shares[[0, 1, 3, 27]], [1, 3 / 4, 3 / 6, 3 / 30], rtol=1e-6)
    np.testing.assert_allclose(shares[297:], 0.01, rtol=1e-5)
    assert ema_step_size(10**9, 1.0) > 0  # a decay of 1 still learns
    assert ema_step_size(0, 0.0) == ema_step_size(9, 0.0) == 1


def test_the_learning_rate_holds_and_falls_and_gradients_are_clipped():
    def sizes(optimiser):
        def body(state, _):
            change, state = optimiser.update(jnp.float32(1), state)
            return state, change

        return np.asarray(jax.lax.scan(body, optimiser.init(jnp.float32(0)), None, length=41)[1])

    config = LearnerConfig(learning_rate=0.01, learning_rate_hold=0.25, learning_rate_end=0.1)
    rate = sizes(make_optimiser(config, 40)) / sizes(optax.radam(1.0))
    np.testing.assert_allclose(rate[:11], 0.01, rtol=1e-3)
    np.testing.assert_allclose(rate[[25, 40]], [0.0055, 0.001], rtol=1e-3)
    clipped = make_optimiser(LearnerConfig(learning_rate=1.0, max_gradient_norm=2.0), 10)
    change, _ = clipped.update(jnp.array([300.0, 400.0]), clipped.init(jnp.zeros(2)))
    np.testing.assert_allclose(change, [-1.2, -1.6], rtol=1e-3)  # RAdam's first step is plain


def test_every_epoch_learns_from_each_sequence_once():
    config = LearnerConfig(epochs=3, minibatches=4)
    orders = np.asarray(update.minibatch_orders(jax.random.key(0), 12, config))
    assert orders.shape == (12, 3)
    epochs = orders.reshape(3, 12)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(12), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_learning_rate_falls_over_all_gradient_steps(monkeypatch):
    asked = []
    monkeypatch.setattr(update, "make_optimiser", lambda _, steps, __: asked.append(steps))
    config = LearnerConfig(epochs=2, minibatches=4)
    update.make_learner(config, features=5, actions=2, drones=2, state=3, updates=7)
    assert asked == [56]


def test_values_begin_near_zero_and_advantages_are_relative():
    apply = AgentNetwork(LearnerConfig(), 40, 7)
    parameters, hidden_state = apply.init(jax.random.key(0)), jnp.zeros(0)
    seen = jax.random.normal(jax.random.key(1), (64, 40))
    values, _ = apply(parameters, seen, hidden_state)
    assert float(values.std()) < 0.2
    head = parameters["advantage"] | {"bias": parameters["advantage"]["bias"] + 5.0}
    again, _ = apply(parameters | {"advantage": head}, seen, hidden_state)
    np.testing.assert_allclose(again, values, atol=1e-4)
