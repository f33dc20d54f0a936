"""What every benchmark shares: timing, the description of the machine, and result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def measure(compiled: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Median, lowest and highest seconds of calls after a first one that compiles."""
    started = time.perf_counter()
    jax.block_until_ready(compiled())
    first = time.perf_counter() - started
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled())
        seconds.append(time.perf_counter() - started)
    return {
        "first_call": first,
        "median": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
    }


def machine() -> dict[str, Any]:
    """Device, cores, versions and the command."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": str(jax.devices()[0].device_kind),
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def save(name: str, results: Any) -> Path:
    """Writes `benchmarks/results/NAME.json` with the machine beside the results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    print(f"wrote {path}")
    return path
