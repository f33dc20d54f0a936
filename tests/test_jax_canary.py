"""Watches for a JAX that computes wrong numbers without a word (jax-ml/jax#39103).

jax 0.10.2 compiles a vmapped matrix-vector product with a reduction wrongly on CPU, from 32,769
rows of float32 on. Vmapped networks and mixers have this form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("function", NUMPY, ids=lambda function: function.__name__)
@pytest.mark.parametrize("rows", [ROWS - 1, ROWS, 2 * ROWS])
@pytest.mark.parametrize("size", [3, 8])
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
