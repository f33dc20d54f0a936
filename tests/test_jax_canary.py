"""Watches for a JAX that computes wrong numbers without a word, or that cannot compile a barrier.

On CPU, some releases compile a vmapped matrix-vector product with a reduction wrongly: the rows
after the 32,768th, where a row has three float32 numbers. jax 0.9.1 to 0.10.1 are wrong for sums
and maxima, 0.10.2 for sums of squares as well; 0.7.2, 0.8.3, 0.9.0, 0.11.0 and 0.12.0 are right
(jax-ml/jax#39103).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxqmix.compilation import jit, materialise

ROWS = 32_769


def squared_norm(matrix, row):
    """The squared length of a matrix-vector product."""
    return jnp.sum((matrix @ row) ** 2)


def total(matrix, row):
    """The sum of a matrix-vector product."""
    return jnp.sum(matrix @ row)


def largest(matrix, row):
    """The largest entry of a matrix-vector product."""
    return jnp.max(matrix @ row)


NUMPY = {
    squared_norm: lambda product: np.sum(product**2, axis=1),
    total: lambda product: np.sum(product, axis=1),
    largest: lambda product: np.max(product, axis=1),
}


KNOWN_FAULT = pytest.mark.xfail(
    condition=(0, 9, 1) <= jax.__version_info__ <= (0, 10, 1),
    reason="jax 0.9.1 to 0.10.1 miscompile this product on CPU",
    strict=False,  # the fault depends on the processor
)


@pytest.mark.parametrize(
    ("function", "rows", "size"),
    [
        (squared_norm, ROWS - 1, 3),
        (squared_norm, ROWS, 3),
        (squared_norm, ROWS, 8),
        pytest.param(total, ROWS, 3, marks=KNOWN_FAULT),
        (total, ROWS, 8),
        pytest.param(largest, ROWS, 3, marks=KNOWN_FAULT),
        (largest, ROWS, 8),
        (total, 40_000, 128),
    ],
)
def test_compiled_batches_of_products_are_right(function, rows, size):
    """Every row of a compiled batch equals NumPy's, and what the uncompiled batch gives.

    The entries are small whole numbers, so that float32 is exact in any order.
    """
    random = np.random.default_rng(0)
    batch = random.integers(-9, 10, (rows, size)).astype(np.float32)
    for matrix in (np.eye(size), random.integers(-3, 4, (size, size))):
        matrix = matrix.astype(np.float32)
        one_by_one = jax.vmap(function, (None, 0))
        compiled = np.asarray(jax.jit(one_by_one)(matrix, batch))
        np.testing.assert_array_equal(compiled, NUMPY[function](batch @ matrix.T))
        np.testing.assert_array_equal(compiled, np.asarray(one_by_one(matrix, batch)))


def test_closed_over_matrix():
    """The form in which the fault was reported: a constant matrix and rows that count up."""
    count = jnp.arange(ROWS, dtype=jnp.float32)
    batch = jnp.stack([count, jnp.zeros_like(count), jnp.zeros_like(count)], axis=1)
    matrix = jnp.eye(3)

    def function(batch):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(batch)

    compiled, eager = np.asarray(jax.jit(function)(batch)), np.asarray(function(batch))
    np.testing.assert_array_equal(compiled, np.asarray(count) ** 2)
    np.testing.assert_array_equal(eager, compiled)


def test_barriers_in_small_loops_compile():
    """jax 0.12 aborts on them with XLA's pass `small-while-loop-hoisting`."""

    def step(_, pair):
        return materialise((pair[0] + 1, pair[1] * 2))

    count, power = jit(lambda pair: jax.lax.fori_loop(0, 5, step, pair))(
        (jnp.zeros(3), jnp.ones(3))
    )
    np.testing.assert_array_equal(count, 5)
    np.testing.assert_array_equal(power, 32)
