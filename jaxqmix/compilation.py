"""How jaxqmix compiles: one place for compiler options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

_CPU_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def materialise(tree: Any) -> Any:
    """Asks the compiler to compute these arrays once and keep them, instead of fusing.

    On CPU, XLA otherwise repeats a gather or a random draw inside every element of the loops that
    use it. The result is the same either way.
    """
    return jax.lax.optimization_barrier(tree)


def jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for whole programs, with barriers kept on CPU.

    XLA's CPU compiler drops optimization barriers before it fuses; the option keeps them. Use it
    on the outermost function only: JAX takes compiler options nowhere else.
    """
    if jax.default_backend() == "cpu":
        options["compiler_options"] = _CPU_OPTIONS
    return jax.jit(function, **options)
