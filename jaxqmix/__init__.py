"""jaxqmix: a JAX-accelerated simulator and QMIX learner for drone swarms.

The names below load when they are first used, so that `import jaxqmix` is quick:

  preset(name, **{"env.drones": 3})
                          the config of a named mission: quick, full, scale20, and each of them with
                          sensing by chance: quick-probabilistic, ...; `config.replace(...)` changes
                          settings likewise
  make(config)            an environment: `reset(key, params)` and `step(key, state, actions,
                          params)` of one swarm, for `jax.vmap` and `jax.jit`; `Parts` puts your
                          own reward terms, features, sensor or mission into it
  with_city(config, city) the config for flights over a city file, or a folder of them; `CityMap` is
                          a literal city
  train(config, out)      trains a run in a folder and shows its progress; with `seeds=5` five of
                          them side by side; with `env=` in a world of your own, any `Environment`
  load_policy(path)       a trained policy with its config: a `LoadedPolicy`
  scripted(name, config)  a scripted planner, one of `PLANNERS`, with a config: a
                          `LoadedPolicy`; `planner` is the policy alone
  evaluate(policy, config)
                          flies held-out cities and judges a loaded or any other policy
  record(policy, config)  one recorded episode; `recorder` lets you choose the world
  show(episode)           draws it in a notebook; `draw` draws it into a file; both also take what
                          `record` takes
  draw_observation(...)   draws what one drone observes
  use_all_cores()         before JAX's first computation: every CPU core becomes a device
  RunConfig, EnvConfig, DomainConfig, RewardConfig
                          settings of a run, of the world's shapes, of the ranges that worlds are
                          drawn from, and of the reward's terms
  ConfigError             what a setting that is not allowed raises
  Policy, LearnedPolicy   what chooses actions, and what `load_policy` gives
  State, Timestep, EnvParams, City, Episode
                          records of a world, see their docstrings
  ACTIONS                 names of the actions, in the order of their numbers
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What type checkers and editors read; the names are those of `_HOMES`.
    from jaxqmix.api import draw as draw
    from jaxqmix.api import evaluate as evaluate
    from jaxqmix.api import record as record
    from jaxqmix.api import recorder as recorder
    from jaxqmix.api import show as show
    from jaxqmix.api import train as train
    from jaxqmix.config import ConfigError as ConfigError
    from jaxqmix.config import DomainConfig as DomainConfig
    from jaxqmix.config import EnvConfig as EnvConfig
    from jaxqmix.config import RewardConfig as RewardConfig
    from jaxqmix.config import RunConfig as RunConfig
    from jaxqmix.distributed import use_all_cores as use_all_cores
    from jaxqmix.env.base import Environment as Environment
    from jaxqmix.env.urban_grid import Parts as Parts
    from jaxqmix.loading import LoadedPolicy as LoadedPolicy
    from jaxqmix.loading import load_policy as load_policy
    from jaxqmix.loading import make as make
    from jaxqmix.loading import scripted as scripted
    from jaxqmix.maps import CityMap as CityMap
    from jaxqmix.maps import with_city as with_city
    from jaxqmix.planners import PLANNERS as PLANNERS
    from jaxqmix.planners import planner as planner
    from jaxqmix.policies import LearnedPolicy as LearnedPolicy
    from jaxqmix.presets import preset as preset
    from jaxqmix.render.observation import draw_observation as draw_observation
    from jaxqmix.types import ACTIONS as ACTIONS
    from jaxqmix.types import City as City
    from jaxqmix.types import EnvParams as EnvParams
    from jaxqmix.types import Episode as Episode
    from jaxqmix.types import Policy as Policy
    from jaxqmix.types import State as State
    from jaxqmix.types import Timestep as Timestep

__version__ = "0.1.0"

_HOMES = {
    "use_all_cores": "jaxqmix.distributed",
    "EnvConfig": "jaxqmix.config",
    "DomainConfig": "jaxqmix.config",
    "RewardConfig": "jaxqmix.config",
    "RunConfig": "jaxqmix.config",
    "ConfigError": "jaxqmix.config",
    "preset": "jaxqmix.presets",
    "planner": "jaxqmix.planners",
    "PLANNERS": "jaxqmix.planners",
    "make": "jaxqmix.loading",
    "Parts": "jaxqmix.env.urban_grid",
    "Environment": "jaxqmix.env.base",
    "with_city": "jaxqmix.maps",
    "CityMap": "jaxqmix.maps",
    "train": "jaxqmix.api",
    "evaluate": "jaxqmix.api",
    "load_policy": "jaxqmix.loading",
    "scripted": "jaxqmix.loading",
    "record": "jaxqmix.api",
    "recorder": "jaxqmix.api",
    "show": "jaxqmix.api",
    "draw": "jaxqmix.api",
    "LoadedPolicy": "jaxqmix.loading",
    "draw_observation": "jaxqmix.render.observation",
    "LearnedPolicy": "jaxqmix.policies",
    "Policy": "jaxqmix.types",
    "State": "jaxqmix.types",
    "Timestep": "jaxqmix.types",
    "EnvParams": "jaxqmix.types",
    "City": "jaxqmix.types",
    "Episode": "jaxqmix.types",
    "ACTIONS": "jaxqmix.types",
}
__all__ = sorted(_HOMES)
_RENAMED = {"Flyer": "LoadedPolicy"}
"""Former names, kept for one version."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(
            f"jaxqmix.{name} is now jaxqmix.{_RENAMED[name]}", DeprecationWarning, stacklevel=2
        )
        name = _RENAMED[name]
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxqmix' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
