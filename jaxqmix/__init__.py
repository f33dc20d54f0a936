"""jaxqmix: a JAX-accelerated simulator and QMIX learner for drone swarms.

The names below load when they are first used, so that `import jaxqmix` is quick:

  preset(name)            the config of a named mission: quick, full, scale20, and each
                          of them with sensing by chance: quick-probabilistic, ...
  make(config)            an environment: `reset(key, params)` and `step(key, state, actions,
                          params)` of one swarm, for `jax.vmap` and `jax.jit`
  with_city(config, city) the config for flights over a city file, or a folder of them
  train(config, out)      trains a run in a folder
  load_policy(path)       a trained policy, to act with
  scripted(name, config)  a scripted planner, to act with; `planner` is its bare policy
  evaluate(flyer)         flies held-out cities and judges either
  record(flyer)           one recorded episode; `recorder` lets you choose the world
  show(episode, cell_size=...)
                          draws it in a notebook; `jaxqmix.render.render` draws it into a file
  draw_observation(...)   draws what one drone observes
  use_all_cores()         before JAX's first computation: every CPU core becomes a device
  RunConfig, EnvConfig, DomainConfig
                          settings of a run, of the world's shapes, and of the ranges that worlds
                          are drawn from
  ConfigError             what a setting that is not allowed raises
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "use_all_cores": "jaxqmix.distributed",
    "EnvConfig": "jaxqmix.config",
    "DomainConfig": "jaxqmix.config",
    "RunConfig": "jaxqmix.config",
    "ConfigError": "jaxqmix.config",
    "preset": "jaxqmix.presets",
    "planner": "jaxqmix.planners",
    "make": "jaxqmix.api",
    "with_city": "jaxqmix.maps",
    "evaluate": "jaxqmix.api",
    "load_policy": "jaxqmix.api",
    "scripted": "jaxqmix.api",
    "record": "jaxqmix.api",
    "recorder": "jaxqmix.api",
    "train": "jaxqmix.runner",
    "show": "jaxqmix.render.notebook",
    "draw_observation": "jaxqmix.render.observation",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxqmix' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
