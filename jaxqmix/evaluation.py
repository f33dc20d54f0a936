"""Greedy evaluation on held-out cities, and the success criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxqmix.compilation import jit
from jaxqmix.config import EvaluationConfig
from jaxqmix.distributed import COPIED, SPREAD, make_mesh, on_each_device, place
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.rollout import fly_episodes
from jaxqmix.types import Episode, Policy

METRICS = (
    "collision_rate",
    "collided_drones",
    "violation_rate",
    "coverage",
    "return",
    "mission_reward",
    "t90",
    "mission_success",
)
EVALUATION, SELECTION = 2, 3
"""Streams of random numbers (training's is 1): the final evaluation flies other cities than the
periodic ones that choose the best checkpoint, so that the choice does not flatter it."""
RESAMPLES = 2000
"""Bootstrap resamples behind a confidence interval."""


Evaluate = Callable[..., tuple[dict[str, np.ndarray], Episode | None]]


def evaluator(
    env: UrbanGrid, make_policy: Callable[[Any], Policy], batch: int, keep: bool = False
) -> Evaluate:
    """A compiled evaluation: one program flies every number of episodes, batch after batch.

    Args:
      env: the world.
      make_policy: from an argument (parameters, say) to the policy.
      batch: how many episodes are flown side by side.
      keep: also record the episodes.

    Returns:
      `evaluate(argument, seed, episodes, stream=EVALUATION)`: metrics per episode [E] and
      `coverage_over_time` [E, T + 1], and recorded episodes or None. The same seed, number of
      episodes and stream fly the same cities for every policy.
    """
    mesh = make_mesh(lambda devices: batch % devices == 0)

    def fly(argument: Any, keys: jax.Array) -> tuple[dict[str, jax.Array], Episode | None]:
        return fly_episodes(keys, env, make_policy(argument), keep)

    fly_batch = jit(on_each_device(fly, mesh, (COPIED, SPREAD), SPREAD))

    def evaluate(
        argument: Any, seed: int, episodes: int, stream: int = EVALUATION
    ) -> tuple[dict[str, np.ndarray], Episode | None]:
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), stream)
        keys = jax.random.split(key, episodes)
        argument = place(argument, mesh, COPIED)
        flown = []
        for first in range(0, episodes, batch):
            # The last batch is filled up with the episodes in front, which are then dropped.
            chosen = np.arange(first, first + batch) % episodes
            result = jax.device_get(fly_batch(argument, place(keys[chosen], mesh, SPREAD)))
            flown.append(jax.tree.map(lambda leaf: leaf[: episodes - first], result))  # noqa: B023
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *flown)

    return evaluate


def summarise(metrics: dict[str, Any], names: Sequence[str] = METRICS) -> dict[str, Any]:
    """Means over episodes (or seeds), and `METRIC_ci95: [low, high]` by bootstrap over them.

    Args:
      metrics: [E] each.
      names: of the metrics to summarise.
    """
    summary: dict[str, Any] = {}
    for name in names:
        values = np.asarray(metrics[name], np.float64)
        # The same draw for every metric and policy.
        resamples = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
        low, high = np.quantile(values[resamples].mean(axis=1), [0.025, 0.975])
        summary[name] = float(values.mean())
        summary[f"{name}_ci95"] = [float(low), float(high)]
    return summary


def coverage_over_time(metrics: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Coverage after 0, 1, ... T env steps: its mean over episodes, and 10th and 90th percentile.

    An episode that ends early keeps its last coverage.
    """
    coverage = np.asarray(metrics["coverage_over_time"], np.float64)
    curves = {"mean": coverage.mean(axis=0)}
    curves["p10"], curves["p90"] = np.quantile(coverage, [0.1, 0.9], axis=0)
    return {name: curve.round(5).tolist() for name, curve in curves.items()}


def success(summary: dict[str, Any], config: EvaluationConfig) -> dict[str, bool]:
    """Which success criteria are met; one boolean each."""
    return {
        "collision_rate": summary["collision_rate"] < config.max_collision_rate,
        "return": summary["return"] > config.min_return,
        "coverage": summary["coverage"] >= config.min_coverage,
    }
