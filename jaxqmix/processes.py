"""Several processes, on one machine or on many, that train one run together.

They see all their devices as one mesh (`jax.distributed`): each flies its share of the swarms, and
gradients are summed over all. Every process does the same, and computes the same reports; the first
alone writes. What clocks and signals decide, the processes agree upon before each dispatch, for one
that went another way would leave the others waiting.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from jaxqmix.config import ConfigError, refuse

JOIN_SECONDS, SILENT_SECONDS = 600, 30
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
      ConfigError: when the first does not listen, or its port is taken. When others do not come,
        JAX ends the process.
    """
    jax.config.update("jax_num_cpu_devices", 1)
    with contextlib.suppress(AttributeError):  # of versions without it
        # It would take SIGTERM for itself, and a run could not be ended before it trains.
        jax.config.update("jax_enable_preemption_service", False)
    if coordinator is not None and number > 0:
        await_first(coordinator)
    # While it waits Python hears no signal.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            coordinator,
            None if coordinator is None else count,
            None if coordinator is None else number,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=SILENT_SECONDS,
        )
    except Exception as error:  # of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        refuse("coordinator", coordinator, f"the processes did not come together: {reason}")
    finally:
        signal.signal(signal.SIGINT, before)


def await_first(coordinator: str) -> None:
    """Waits until the first process listens; raises `ConfigError` when it does not.

    JAX itself ends a process that waits in vain with a page of C++.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except UnicodeError:
            refuse("coordinator", coordinator, "its host is no name of a machine")
        except OSError as error:
            if time.monotonic() > end:
                allowed = f"nobody listens there after {JOIN_SECONDS} s: {error.strerror or error}"
                refuse("coordinator", coordinator, allowed)
        time.sleep(0.2)


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
    foreign = isinstance(error, RuntimeError | ValueError) and not isinstance(error, ConfigError)
    return foreign and any(word in str(error) for word in words)


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
      ConfigError: in the others, when one of them raised something.
    """
    if not several():
        return action()
    error: Exception | None = None
    try:
        result = action()
    except Exception as refused:
        error = refused
    failed = agree(error is not None)
    if error is not None:
        raise error
    if any(failed):
        raise ConfigError(f"process {failed.index(1)} of this run does not begin; it says why")
    return result


def require_same(what: str, told: str, allowed: str) -> None:
    """Raises `ConfigError` in every process where they do not all say the same."""
    if len(set(agree(zlib.crc32(told.encode()) & 0x7FFFFFFF))) > 1:
        refuse(what, jax.process_count(), allowed)


def by_first(action: Callable[[], Any]) -> None:
    """Does something in the first process, while the others wait for it; errors as `all_do`."""
    all_do(action if is_first() else lambda: None)
