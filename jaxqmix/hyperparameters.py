"""Settings that may differ between runs that one program trains side by side.

They are numbers to XLA: `stacked` puts those of several runs into arrays, and `bound` puts one
run's, under `jax.vmap`, where the functions of a run look for them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxqmix.config import LEARNER_NUMBERS, ConfigError, RunConfig, setting_names, shown
from jaxqmix.env.domain import ranges

_SEED = "training.seed"
TRACED = (
    *(f"learner.{name}" for name in LEARNER_NUMBERS),
    "training.epsilon_start",
    "training.epsilon_end",
    *(f"domain.{name}" for name in setting_names(RunConfig().domain)),
)
"""What may differ, besides the seed."""


def value_of(config: RunConfig, name: str) -> Any:
    """A setting by its name, such as `learner.gamma`."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def differing(configs: Sequence[RunConfig]) -> list[str]:
    """The settings in which runs differ, besides the seed.

    Raises:
      ConfigError: naming one that decides the program, and so cannot differ within it.
    """
    found = [
        name
        for name in setting_names(configs[0])
        if name != _SEED and len({value_of(config, name) for config in configs}) > 1
    ]
    for name in found:
        if name not in TRACED:
            values = ", ".join(shown(value_of(config, name)) for config in configs)
            raise ConfigError(
                f"{name} = {values} is not allowed: it decides the program, and runs side by side "
                f"share one; they may differ in {', '.join(TRACED)}"
            )
    return found


def stacked(configs: Sequence[RunConfig]) -> dict[str, Any]:
    """Float32 arrays [K] of the settings in which K runs differ, by name; under `domain` all of
    the domains, as `jaxqmix.env.domain.ranges`."""
    values: dict[str, Any] = {}
    for name in differing(configs):
        if name.startswith("domain."):
            values["domain"] = ranges([config.domain for config in configs])
        else:
            values[name] = np.array([value_of(config, name) for config in configs], np.float32)
    return values


def bound(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A config with arrays in the places of numbers, unchecked: for functions under `jax.jit`."""
    config = copy.copy(config)
    for name, value in values.items():
        section, _, setting = name.rpartition(".")
        changed = copy.copy(getattr(config, section)) if section else config
        object.__setattr__(changed, setting, value)
        if section:
            object.__setattr__(config, section, changed)
    return config
