"""Where figures come from: versions, commit, device and day."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jaxqmix", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")
"""Whose versions decide what a program computes, and how fast."""


def machine() -> dict[str, Any]:
    """Device, cores, versions, commit and day."""
    return {
        "device": str(jax.devices()[0].device_kind),
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "processor": _processor(),
        "cores": _cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


def _commit() -> str | None:
    """Of the checkout, with `-dirty` where files are changed; None for an installed package."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, cwd=root, capture_output=True, check=True, timeout=10)
        return found.stdout.decode().strip()
    return None


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


class Journal:
    """Who worked on a run, where and for how long: a list in a file, one entry per process.

    An entry is written when its process begins, and again when it ends; that of a process that was
    killed keeps the outcome `running` and has no end.
    """

    def __init__(self, path: Path, env_steps: int, began: float, seeds: int = 1):
        """Adds an entry to the list; a file that cannot be read is written anew.

        Args:
          path: of the file.
          env_steps: where the process begins.
          began: when it did, by `time.perf_counter`; compilation counts.
          seeds: how many runs it trains side by side.
        """
        self._path, self._began = path, began
        since = time.time() - (time.perf_counter() - began)
        self._entry = machine() | {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since)),
            "seeds": seeds,
            "outcome": "running",
            "env_steps": [env_steps, None],
            "wall_seconds": None,
        }
        self._before = read_journal(path)
        self._write()

    def end(self, outcome: str, env_steps: int) -> None:
        """The process ends: `finished`, `stopped` or `failed`, after so many env steps in all."""
        self._entry |= {
            "outcome": outcome,
            "env_steps": [self._entry["env_steps"][0], env_steps],
            "wall_seconds": round(time.perf_counter() - self._began, 1),
        }
        self._write()

    def _write(self) -> None:
        part = self._path.with_name(f".{self._path.name}")
        text = json.dumps([*self._before, self._entry], indent=2)
        with contextlib.suppress(OSError):  # a full disk has a line of its own elsewhere
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(self._path)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal; none where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(e, dict) for e in found) else []
