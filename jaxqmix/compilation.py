"""How jaxqmix compiles: one place for compiler options."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import platformdirs

from jaxqmix.config import ConfigError

JAX_SETTINGS: Any = jax.config
"""JAX declares none of them to type checkers."""

# The first would drop the barriers. The second makes one kernel of a small loop, and the process
# aborts there on a barrier of several arrays (jax 0.12); without it nothing was slower.
_CPU_OPTIONS = {
    "xla_disable_hlo_passes": "cse_barrier_expander,small-while-loop-hoisting",
    # Of LLVM: compiled in two thirds of the time; no program was slower by more than the noise.
    "xla_backend_optimization_level": 1,
}
_ONCE_OPTIONS = {"xla_backend_optimization_level": 0}


def materialise(tree: Any) -> Any:
    """Asks the compiler to compute these arrays once and keep them, instead of fusing.

    On CPU, XLA otherwise repeats a gather or a random draw inside every element of the loops that
    use it. The result is the same either way.
    """
    return jax.lax.optimization_barrier(tree)


def jit(function: Callable, once: bool = False, **options: Any) -> Callable:
    """`jax.jit` for whole programs, with barriers kept on CPU.

    XLA's CPU compiler drops optimization barriers before it fuses; the option keeps them. Use it
    on the outermost function only: JAX takes compiler options nowhere else.

    Args:
      function: to compile.
      once: it runs only once: on CPU it is compiled sooner, and may run slower.
      options: of `jax.jit`.
    """
    if jax.default_backend() == "cpu":
        options["compiler_options"] = _CPU_OPTIONS | (_ONCE_OPTIONS if once else {})
    return jax.jit(standard_promotion(function), **options)


def standard_promotion(function: Callable) -> Callable:
    """A function that is traced by JAX's usual rules for types, whatever the user's setting
    `jax_numpy_dtype_promotion`: the same program also where others' code is to be strict."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*given, **named)

    return call


def compile_ahead(
    programs: Mapping[str, tuple[Any, tuple]],
    notice: Callable[[list[str]], None] = lambda names: None,
) -> tuple[dict[str, Callable], dict[str, Any]]:
    """Compiles programs side by side in threads, before any of them runs.

    Tracing holds Python's lock and compiling does not, so that one program is traced while others
    are compiled.

    Args:
      programs: by name, a jitted function and the shapes of its arguments, with their shardings;
        the dearest first.
      notice: hears which programs are still being compiled.

    Returns:
      The compiled programs, and `seconds`, `programs` and `cached` (how many came from the
      persistent cache).
    """
    started, compiled, before = time.perf_counter(), {}, len(_cache_hits())
    notice(list(programs))
    with ThreadPoolExecutor(max_workers=max(len(programs), 1)) as threads:
        jobs = {
            threads.submit(function.lower(*shapes).compile): name
            for name, (function, shapes) in programs.items()
        }
        for job in as_completed(jobs):
            compiled[jobs[job]] = job.result()
            notice([name for name in programs if name not in compiled])
    seconds, cached = time.perf_counter() - started, len(_cache_hits()) - before
    return compiled, {"seconds": seconds, "programs": len(compiled), "cached": cached}


@functools.cache
def _cache_hits() -> list[str]:
    """A list that grows by one for each program that the persistent cache gives."""
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    return hits


def require_float32() -> None:
    """Raises `ConfigError` under `jax_enable_x64`: results would be others, and half as fast."""
    if JAX_SETTINGS.jax_enable_x64:
        raise ConfigError(
            "jax_enable_x64 = True is not allowed: jaxqmix computes in float32; say "
            'jax.config.update("jax_enable_x64", False) first'
        )


def is_running() -> bool:
    """Whether JAX has looked at its devices, and started its threads."""
    count = JAX_SETTINGS.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", max(count, 0) + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", count)
    return False


_forked: list[bool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.append(is_running()))


def require_no_fork() -> None:
    """Raises `ConfigError` in a process that was forked off one where JAX ran: it would hang."""
    if any(_forked):
        raise ConfigError(
            "process = fork is not allowed: JAX does not survive a fork; use "
            'multiprocessing.get_context("spawn")'
        )


def cache_folder() -> Path:
    """The user's cache folder for compiled programs, by the platform's custom."""
    if chosen := os.environ.get("JAXQMIX_CACHE"):
        return Path(chosen)
    # A user without a home, as in containers: an error, or a relative path in older versions.
    with contextlib.suppress(RuntimeError):
        folder = Path(platformdirs.user_cache_dir("jaxqmix", appauthor=False, opinion=False))
        if folder.is_absolute():
            return folder
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"jaxqmix-{user}"


def enable_cache() -> None:
    """Keeps compiled programs between runs, unless the user chose a cache for JAX already."""
    if not JAX_SETTINGS.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
