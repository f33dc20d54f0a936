"""Swarms spread over devices: each flies its share, and gradients are summed over all.

A program over the axis `SWARMS` is written for the swarms of one device and runs on every device
(`jax.shard_map`), as in the Anakin architecture (Hessel et al. 2021, "Podracer architectures").
On CPU every core is a device: XLA hardly uses a second core for one program of this kind.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxqmix.config import refuse

SWARMS = "swarms"
"""The axis over which swarms, episodes and stored sequences are spread."""
SHARDED, REPLICATED = PartitionSpec(SWARMS), PartitionSpec()
"""Arrays whose leading axis is spread over the devices, and arrays that each device holds."""
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux tells what a container may use, in bytes: control groups of version 2 and 1."""


def use_all_cores() -> None:
    """Makes every CPU core a device of JAX; call it before JAX's first computation.

    Does nothing once JAX is running, or where the user set the number of CPU devices; but freed
    memory is kept, see `keep_freed_memory`.
    """
    keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings: Any = jax.config  # it declares none of them
    chosen = settings.jax_num_cpu_devices > 0
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", cores or 1)
    except RuntimeError:  # JAX is already running.
        return


def dispatches_ahead() -> int:
    """Dispatches of training that may wait for the devices while the host does something else.

    None on CPU, where that gains nothing: its devices would share their threads with them.
    """
    return 0 if jax.default_backend() == "cpu" else 1


def suggested_scale() -> str:
    """The scale for the device found, `cpu` or `gpu` (TPUs too); see `jaxqmix.presets.SCALES`."""
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def keep_freed_memory() -> None:
    """Lets the process keep what a program's large arrays leave, where malloc is glibc's.

    Given back to the system after every call, the pages are cleared anew for the next one: a
    quarter of the time of training 20 drones in mode `replay`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
    # An older glibc refuses more than 2**25; unset, the threshold would be frozen at 128 KiB.
    if not mallopt(mmap_threshold, 2**30):
        mallopt(mmap_threshold, 2**25)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def device_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes of memory of the devices together, or None where nobody tells."""
    # Others' devices do not tell; they are taken to be like one's own.
    own = [device for device in devices if device.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in own]
    if all(limits):
        return sum(limits) * len(devices) // len(own)
    return host_memory() if devices[0].platform == "cpu" else None


def host_memory(limits: Sequence[Path] = CONTAINER_LIMITS) -> int | None:
    """Bytes of the machine's memory, or of what a container may use where that is less."""
    texts = [file.read_text(encoding="utf-8").strip() for file in limits if file.exists()]
    found = [int(text) for text in texts if text.isdigit()]
    if hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def make_mesh(fits: Callable[[int], bool]) -> Mesh:
    """A mesh over as many devices as fit; `fits(1)` must hold.

    Raises:
      ConfigError: when several processes have more devices than fit, for each takes part.
    """
    devices = jax.devices()
    count = next(n for n in range(len(devices), 0, -1) if fits(n))
    if jax.process_count() > 1 and count < len(devices):
        allowed = f"swarms, minibatches and episodes cannot be spread over {len(devices)} devices"
        refuse("processes", jax.process_count(), f"{allowed}; {count} would do")
    return Mesh(np.array(devices[:count]), (SWARMS,))


def on_each_device(function: Callable, mesh: Mesh, inputs: Any, outputs: Any) -> Callable:
    """Runs a function of one device's share on every device.

    Args:
      function: may use `total` and `own_key` over `SWARMS`.
      mesh: of `make_mesh`.
      inputs: a tuple of SHARDED or REPLICATED, or trees of them, one for each argument.
      outputs: likewise, of the result.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def shardings(mesh: Mesh, specs: Any) -> Any:
    """The shardings of a tree of SHARDED and REPLICATED."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda s: isinstance(s, PartitionSpec),
    )


def place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Puts a tree of whole arrays on the devices; `specs` is a prefix of it."""
    places = shardings(mesh, specs)
    if jax.process_count() == 1:
        return jax.device_put(tree, places)
    full = jax.tree.broadcast(places, tree, is_leaf=lambda x: isinstance(x, NamedSharding))
    return jax.tree.map(_own_part, tree, full)


def _own_part(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array over the devices of several processes, each of which holds it whole."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf  # It is there already.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_own_part(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def shapes_at(shapes: Any, places: Any) -> Any:
    """The shapes of a tree with their shardings (a prefix of it), to compile for them."""
    full = jax.tree.broadcast(places, shapes, is_leaf=lambda x: isinstance(x, NamedSharding))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        full,
    )


def total(value: Any, axis: str | None) -> Any:
    """The sum of a float32 tree over all devices; `axis` None outside of `on_each_device`.

    One message: devices wait for each other at every one.
    """
    if axis is None:
        return value
    flat, restore = ravel_pytree(value)
    return restore(jax.lax.psum(flat, axis))


def own_key(key: jax.Array, axis: str | None) -> jax.Array:
    """A key of this device's own; `axis` None outside of `on_each_device`."""
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))
