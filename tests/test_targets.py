"""Targets against numbers computed by hand, with and without jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqmix.learner.targets import chosen_values, double_q_values, lambda_returns, masked_max

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
    online = jnp.array([[5.0, 1.0, 3.0]])
    target = jnp.array([[7.0, 8.0, 2.0]])
    available = jnp.array([[False, True, True]])
    assert masked_max(online, available)[0] == 3.0
    # The online network's best available action is 2, which the target network values at 2.
    assert double_q_values(online, target, available)[0] == 2.0
    assert chosen_values(online, jnp.array([1]))[0] == 1.0
