"""What matters? Each part removed or exchanged once, over several seeds, on unseen cities.

Trains every variant of a preset with a smaller budget and flies its policy to the horizon: the
learner (mixer, mode, network), each group of the observation set to zero, and each term of the
reward without its weight. Saves after every variant; variants that the file holds are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import jax
import numpy as np
from common import RESULTS, save
from rich.console import Console
from rich.table import Table

from jaxqmix.compilation import enable_cache
from jaxqmix.config import RunConfig
from jaxqmix.distributed import use_all_cores
from jaxqmix.env.observation import groups
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.evaluation import METRICS, SELECTION, evaluator
from jaxqmix.presets import PRESETS, preset
from jaxqmix.training import make_trainer

RESAMPLES = 2000


def changed(config: RunConfig, section: str, **changes: Any) -> RunConfig:
    """The config with other settings in a section."""
    part = dataclasses.replace(getattr(config, section), **changes)
    return dataclasses.replace(config, **{section: part})


def without_term(config: RunConfig, name: str) -> RunConfig:
    """The config with a reward term's weight set to 0."""
    reward = dataclasses.replace(config.domain.reward, **{name: 0.0})
    return changed(config, "domain", reward=reward)


def variants(base: RunConfig) -> dict[str, RunConfig]:
    """Every variant by name; the first is the preset itself."""
    table = {
        "as it is": base,
        "vdn": changed(base, "learner", mixer="vdn"),
        "iql": changed(base, "learner", mixer="iql"),
        "replay": changed(base, "training", mode="replay"),
        "gru": changed(base, "learner", network="gru"),
        "raw weights": changed(base, "learner", average_decay=0.0),
        "target network": changed(base, "learner", target_update=0.05),
        "one step (lambda 0)": changed(base, "learner", trace=0.0),
        "ends at 95 %": changed(base, "training", coverage_target=base.env.coverage_target),
    }
    for name in groups(base.env):
        table[f"without {name}"] = changed(base, "env", blind_to=(name,))
    for name in ("bonus", "conflict", "building_hit", "violation", "energy"):
        table[f"without reward {name}"] = without_term(base, name)
    return table


def train_seeds(config: RunConfig, seeds: int, episodes: int) -> list[dict[str, float]]:
    """Final evaluations to the horizon, one for each seed; compiled once."""
    trainer = make_trainer(config)
    env = dataclasses.replace(config.env, coverage_target=1.0)
    evaluate = evaluator(UrbanGrid(env, config.domain), trainer.policy, episodes, stream=SELECTION)
    found = []
    for seed in range(seeds):
        state = trainer.initialise(seed)
        for _ in range(config.chunks):
            state, metrics = trainer.chunk(state)
        jax.block_until_ready(metrics)
        figures, _ = evaluate(state.learner.average["agent"], 0)
        found.append({name: float(np.mean(figures[name])) for name in METRICS})
    return found


def summary(name: str, reports: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds with 95 % bootstrap intervals."""
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(reports), (RESAMPLES, len(reports)))
    row: dict[str, Any] = {"variant": name, "seeds": len(reports), "per_seed": reports}
    for metric in METRICS:
        values = np.array([report[metric] for report in reports])
        low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975])
        row[metric] = float(values.mean())
        row[f"{metric}_ci95"] = [float(low), float(high)]
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table("variant", "coverage", "t90", "collisions", "collided drones", "violations")

    def cell(row: dict[str, Any], name: str, form: str) -> str:
        low, high = row[f"{name}_ci95"]
        return f"{form.format(row[name])} ({form.format(low)} to {form.format(high)})"

    for row in rows:
        table.add_row(
            row["variant"], cell(row, "coverage", "{:.1%}"), cell(row, "t90", "{:.1f}"),
            cell(row, "collision_rate", "{:.3%}"), cell(row, "collided_drones", "{:.1%}"),
            cell(row, "violation_rate", "{:.3%}"),
        )  # fmt: skip
    Console(width=150).print(table)


def main() -> None:
    """Trains, evaluates, shows and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quick", choices=list(PRESETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=200_000, help="env steps")
    parser.add_argument("--episodes", type=int, default=128, help="of each evaluation")
    parser.add_argument("--only", nargs="*", help="these variants")
    parser.add_argument("--name", default="ablations", help="of the result file")
    arguments = parser.parse_args()
    enable_cache()
    use_all_cores()
    base = changed(preset(arguments.preset), "training", env_steps=arguments.budget)
    path = RESULTS / f"{arguments.name}.json"
    same = {"preset": arguments.preset, "budget": arguments.budget}
    rows = []
    if path.exists():
        before = json.loads(path.read_text())["results"]
        rows = before["rows"] if {name: before[name] for name in same} == same else []
    for name, config in variants(base).items():
        if any(row["variant"] == name for row in rows) or name not in (arguments.only or [name]):
            continue
        rows.append(summary(name, train_seeds(config, arguments.seeds, arguments.episodes)))
        save(arguments.name, same | {"episodes": arguments.episodes, "rows": rows})
        show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    main()
