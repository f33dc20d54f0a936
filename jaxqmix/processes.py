"""Several processes, on one machine or on many, that train one run together.

They see all their devices as one mesh (`jax.distributed`): each flies its share of the swarms, and
gradients are summed over all. Every process does the same, and computes the same reports; the first
alone writes. What clocks and signals decide, the processes agree upon before each dispatch, for one
that went another way would leave the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from jaxqmix.config import ConfigError, refuse

JOIN_SECONDS, SILENT_SECONDS = 120, 30
"""How long processes wait for each other at first, and how long one may be silent later."""
Value = TypeVar("Value")


def join(coordinator: str | None, count: int, number: int) -> None:
    """Joins the other processes; call it before JAX's first computation.

    On CPU each then has one device: with more, programs in flight may wait for each other for ever
    (jax 0.10 and 0.11).

    Args:
      coordinator: HOST:PORT where the first of them listens; None: JAX finds them, as under SLURM.
      count: how many they are.
      number: which of them this one is, from 0 on.

    Raises:
      ConfigError: when they do not all come, or the port is taken.
    """
    jax.config.update("jax_num_cpu_devices", 1)
    try:
        jax.distributed.initialize(
            coordinator,
            None if coordinator is None else count,
            None if coordinator is None else number,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=SILENT_SECONDS,
            shutdown_timeout_seconds=SILENT_SECONDS,
        )
    except Exception as error:  # of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        refuse("coordinator", coordinator, f"the processes did not come together: {reason}")


def several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes: the only one, or the first."""
    return jax.process_index() == 0


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process does not answer: what joins them raises several
    kinds."""
    words = ("Gloo", "NCCL", "oordination", "eartbeat", "onnection")
    return isinstance(error, RuntimeError | ValueError) and any(w in str(error) for w in words)


def fetch(tree: Any) -> Any:
    """A tree of the devices' arrays on the host, whole, in every process: all must ask for it."""
    if not several():
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def agree(value: int) -> list[int]:
    """Each process's whole number, in every process: all must ask for it."""
    if not several():
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    return [int(each) for each in process_allgather(np.int32(value)).reshape(-1)]


def all_do(action: Callable[[], Value]) -> Value:
    """Does something in every process; all must do it.

    Raises:
      ConfigError: in every process, when one of them raised one.
    """
    if not several():
        return action()
    error: ConfigError | None = None
    try:
        result = action()
    except ConfigError as refused:
        error = refused
    failed = agree(error is not None)
    if error is not None:
        raise error
    if any(failed):
        raise ConfigError(f"process {failed.index(1)} of this run does not begin; it says why")
    return result


def by_first(action: Callable[[], Any]) -> None:
    """Does something in the first process, while the others wait for it; errors as `all_do`."""
    all_do(action if is_first() else lambda: None)
