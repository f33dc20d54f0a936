"""The named missions that users start from."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxqmix.config import (
    CheckpointConfig,
    ConfigError,
    EnvConfig,
    EvaluationConfig,
    RunConfig,
    TrainingConfig,
)

# Measured over 5 seeds: with 500,000 env steps 90 % is seen 1.4 steps later than with 200,000.
QUICK = RunConfig(preset="quick", training=TrainingConfig(env_steps=200_000))

FULL = RunConfig(
    preset="full",
    env=EnvConfig(
        drones=10,
        city_width=5000.0,
        city_length=5000.0,
        cell_size=50.0,
        horizon=400,
        no_fly_zones=4,
    ),
    training=TrainingConfig(env_steps=1_000_000),
    evaluation=EvaluationConfig(every_episodes=250),
    # In mode `replay` a checkpoint holds the store, half a gigabyte and more.
    checkpoint=CheckpointConfig(every_episodes=500),
)

SCALE20 = RunConfig(
    preset="scale20",
    env=dataclasses.replace(FULL.env, drones=20, horizon=200),
    training=TrainingConfig(env_steps=1_000_000),
    evaluation=FULL.evaluation,
    checkpoint=FULL.checkpoint,
)


def by_chance(base: RunConfig, horizon: int, env_steps: int) -> RunConfig:
    """The mission with `probabilistic` sensing: a look sees cells by chance, so it takes longer."""
    env = dataclasses.replace(base.env, sensing="probabilistic", horizon=horizon)
    training = dataclasses.replace(base.training, env_steps=env_steps)
    name = f"{base.preset}-probabilistic"
    return dataclasses.replace(base, preset=name, env=env, training=training)


# The best planner, voronoi, has seen 95 % on average after 106, 639 and 328 steps.
PROBABILISTIC = (
    by_chance(QUICK, 130, 500_000),
    by_chance(FULL, 720, 2_000_000),
    by_chance(SCALE20, 370, 1_000_000),
)
PRESETS = {preset.preset: preset for preset in (QUICK, FULL, SCALE20, *PROBABILISTIC)}


SCALES: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {
        "training.swarms": 2048,
        "training.epsilon_decay_steps": 2_000_000,
        "learner.minibatches": 32,
        "replay.batch": 2048,
        "replay.capacity": 16_384,
        "replay.warmup": 4096,
        "evaluation.every_episodes": 2500,
        "evaluation.episodes": 256,
        "checkpoint.every_episodes": 5000,
    },
}
"""The settings of size that belong to a device. The presets are those of a CPU; a GPU flies 32
times as many swarms in about the same time."""
GPU_ENV_STEPS = {"quick": 5_000_000, "full": 20_000_000, "scale20": 10_000_000}
"""Budgets on a GPU by mission, env steps."""


def preset(name: str, /, scale: str = "cpu", **settings: Any) -> RunConfig:
    """The preset called `name`, with some settings changed as by `RunConfig.replace`::

        preset("quick", **{"env.drones": 3})

    Args:
      name: one of `PRESETS`.
      scale: `cpu` or `gpu`, the settings of size; a run of either scale trains on every device.
      **settings: by dotted names; they come before those of the scale.

    Raises:
      ConfigError: when there is none, or a setting is unknown or not allowed.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset = {name} is not allowed: must be one of {', '.join(PRESETS)}")
    if not isinstance(scale, str) or scale not in SCALES:
        raise ConfigError(f"scale = {scale} is not allowed: must be one of {', '.join(SCALES)}")
    sizes: dict[str, Any] = {"scale": scale, **SCALES[scale]}
    if scale == "gpu":
        sizes["training.env_steps"] = GPU_ENV_STEPS[name.removesuffix("-probabilistic")]
    return PRESETS[name].replace(**(sizes | settings))
