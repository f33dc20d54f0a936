"""Targets against numbers computed by hand, with and without jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqmix.config import LearnerConfig
from jaxqmix.learner.mixers import make_mixer
from jaxqmix.learner.networks import greedy_actions
from jaxqmix.learner.targets import chosen_values, lambda_returns, masked_max
from jaxqmix.learner.update import LearnerState, compute_targets
from jaxqmix.types import Observation, Sequences

REWARD = jnp.array([[1.0], [2.0], [3.0]])
VALUE = jnp.array([[[10.0]], [[20.0]], [[30.0]]])


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.jit(f, static_argnums=(4, 5))])
@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        # G2 = 3 + 0.5 * 30; G1 = 2 + 0.5 * (10 + 9); G0 = 1 + 0.5 * (5 + 5.75)
        ([0, 0, 0], [0, 0, 0], [6.375, 11.5, 18.0]),
        # A mission that ends at step 1 has no future: G1 = 2; G0 = 1 + 0.5 * (5 + 1)
        ([0, 1, 0], [0, 0, 0], [4.0, 2.0, 18.0]),
        # A time limit at step 1 keeps its own: G1 = 2 + 0.5 * 20; G0 = 1 + 0.5 * (5 + 6)
        ([0, 0, 0], [0, 1, 0], [6.5, 12.0, 18.0]),
        ([0, 0, 1], [0, 0, 0], [5.4375, 7.75, 3.0]),
    ],
)
def test_lambda_returns_by_hand(wrap, terminated, truncated, expected):
    flags = [jnp.array(flag, bool)[:, None] for flag in (terminated, truncated)]
    result = wrap(lambda_returns)(REWARD, *flags, VALUE, 0.5, 0.5)
    np.testing.assert_allclose(result[:, 0, 0], expected)


def test_lambda_zero_is_the_one_step_target_and_one_is_monte_carlo():
    no = jnp.zeros((3, 1), bool)
    np.testing.assert_allclose(
        lambda_returns(REWARD, no, no, VALUE, 0.5, 0.0)[:, 0, 0], [6.0, 12.0, 18.0]
    )
    np.testing.assert_allclose(
        lambda_returns(REWARD, no, no, VALUE, 0.5, 1.0)[:, 0, 0], [6.5, 11.0, 18.0]
    )


def test_lambda_returns_refuse_flags_that_are_not_flags():
    no = jnp.zeros((3, 1), bool)
    with pytest.raises(AssertionError):
        lambda_returns(REWARD, REWARD, no, VALUE, 0.5, 0.5)
    with pytest.raises(AssertionError):
        lambda_returns(REWARD, no, no, VALUE[..., 0], 0.5, 0.5)


def test_masks_hold_in_the_maximum_and_in_the_choice():
    values = jnp.array([[5.0, 1.0, 3.0]])
    available = jnp.array([[False, True, True]])
    assert masked_max(values, available)[0] == 3.0
    assert greedy_actions(values, available)[0] == 2
    assert chosen_values(values, jnp.array([1]))[0] == 1.0


ONLINE = np.array([[0, 0, 0], [5, 1, 3], [2, 9, 4], [1, 2, 6]], np.float32)
TARGET = np.array([[0, 0, 0], [11, 8, 2], [20, 6, 10], [3, 9, 12]], np.float32)
"""Values of three actions after 0, 1, 2 and 3 steps, under two networks."""
ACTION_MASK = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]], bool)


def tabled_targets(terminated, truncated, drones=1, mixer=None, **settings):
    """Targets [3] for the rewards 1, 2, 3 and two networks that look their values up.

    A drone observes how many steps were flown; all drones have the same values. They are summed,
    or mixed by a function of what `MixerNetwork.__call__` takes.
    """

    def agent(table, observed, hidden_state):
        return table[observed[..., 0].astype(int)], hidden_state

    time = jnp.arange(4.0)[:, None, None, None]
    observation = Observation(
        agents=jnp.broadcast_to(time, (4, 1, drones, 1)),
        available=jnp.broadcast_to(ACTION_MASK[:, None, None], (4, 1, drones, 3)),
        state=jnp.zeros((4, 1, 1)),
    )
    batch = Sequences(
        observation=observation,
        actions=jnp.zeros((3, 1, drones), int),
        reward=REWARD,
        terminated=jnp.array(terminated, bool)[:, None],
        truncated=jnp.array(truncated, bool)[:, None],
        valid=jnp.ones((3, 1), bool),
        hidden_state=jnp.zeros((1, drones, 0)),
    )
    config = LearnerConfig(mixer="vdn", gamma=0.5, trace=0.5, **settings)
    online, target = ({"agent": jnp.array(v), "mixer": {}} for v in (ONLINE, TARGET))
    learner = LearnerState(online, target, target, None, jnp.int32(0))
    mixer = mixer or make_mixer(config, drones, 3, 1)
    targets = compute_targets(learner, batch, agent, mixer, config)
    assert targets.shape == (3, 1, 1)
    return targets[:, 0, 0]


# The online network's best available actions after 1, 2 and 3 steps are 2, 2 and 1, which the
# target network values at 2, 10 and 9. Unmasked they would be 0, 1 and 2.
@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        # G2 = 3 + 0.5 * 9; G1 = 2 + 0.5 * (5 + 3.75); G0 = 1 + 0.5 * (1 + 3.1875)
        ([0, 0, 0], [0, 0, 0], [3.09375, 6.375, 7.5]),
        # The mission ends at step 1: G1 = 2; G0 = 1 + 0.5 * (1 + 1)
        ([0, 1, 0], [0, 0, 0], [2.0, 2.0, 7.5]),
        # A time limit at step 1: G1 = 2 + 0.5 * 10; G0 = 1 + 0.5 * (1 + 3.5)
        ([0, 0, 0], [0, 1, 0], [3.25, 7.0, 7.5]),
    ],
)
def test_targets_of_two_networks_by_hand(terminated, truncated, expected):
    targets = tabled_targets(terminated, truncated, target_update=0.1)
    np.testing.assert_allclose(targets, expected)


@pytest.mark.parametrize("settings", [{"target_update": 1.0}, {"double_q": False}])
def test_targets_of_one_network_by_hand(settings):
    """It values its own best available actions, at 8, 20 and 9."""
    settings = {"target_update": 0.1} | settings
    # G2 = 3 + 0.5 * 9; G1 = 2 + 0.5 * (10 + 3.75); G0 = 1 + 0.5 * (4 + 4.4375)
    np.testing.assert_allclose(tabled_targets([0] * 3, [0] * 3, **settings), [5.21875, 8.875, 7.5])


def test_targets_mix_the_drones():
    # Twice 2, 10 and 9. G2 = 3 + 9; G1 = 2 + 0.5 * (10 + 6); G0 = 1 + 0.5 * (2 + 5)
    targets = tabled_targets([0] * 3, [0] * 3, drones=2, target_update=0.1)
    np.testing.assert_allclose(targets, [4.5, 10.0, 12.0])


def dueling(parameters, chosen, best, actions, state):
    """The best value, and the chosen one's distance to it as many times as the action says."""
    return (best + actions * (chosen - best)).sum(axis=-1, keepdims=True)


def test_targets_of_a_dueling_mixer_by_hand():
    # The target network finds 8, 20 and 9 best; the online network's actions 2, 2 and 1 are worth
    # 2, 10 and 9 to it: 8 + 2 * (2 - 8) = -4, 20 + 2 * (10 - 20) = 0, and 9 + 1 * 0.
    # G2 = 3 + 0.5 * 9; G1 = 2 + 0.5 * (0 + 3.75); G0 = 1 + 0.5 * (-2 + 1.9375)
    targets = tabled_targets([0] * 3, [0] * 3, mixer=dueling, target_update=0.1)
    np.testing.assert_allclose(targets, [0.96875, 3.875, 7.5])
    # Of one network's own best actions there is no advantage.
    targets = tabled_targets([0] * 3, [0] * 3, mixer=dueling)
    np.testing.assert_allclose(targets, [5.21875, 8.875, 7.5])
