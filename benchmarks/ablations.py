"""What matters? Each part removed or exchanged once, over several seeds, on unseen cities.

Trains every variant of a preset with a smaller budget and flies its policy to the horizon: the
learner (mixer, mode, network), each group of the observation set to zero, and each term of the
reward but the area without its weight. Saves after every variant; variants that the file holds are
skipped.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from common import kept_rows, over_seeds, parse, parser, save, show, with_settings, with_training

from jaxqmix.compilation import enable_cache
from jaxqmix.config import RunConfig, to_dict
from jaxqmix.env.mission import METRICS
from jaxqmix.env.observation import feature_slices
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.evaluation import SELECTION, evaluator
from jaxqmix.presets import PRESETS, preset
from jaxqmix.training import make_trainer


def without_term(config: RunConfig, name: str) -> RunConfig:
    """The config with a reward term's weight set to 0."""
    reward = dataclasses.replace(config.domain.reward, **{name: 0.0})
    return with_settings(config, "domain", reward=reward)


def variants(base: RunConfig) -> dict[str, RunConfig]:
    """Every variant by name; the first is the preset itself."""
    table = {
        "as it is": base,
        "qplex": with_settings(base, "learner", mixer="qplex"),
        "vdn": with_settings(base, "learner", mixer="vdn"),
        "iql": with_settings(base, "learner", mixer="iql"),
        "replay": with_settings(base, "training", mode="replay"),
        "gru": with_settings(base, "learner", network="gru"),
        "raw weights": with_settings(base, "learner", average_decay=0.0),
        "target network": with_settings(base, "learner", target_update=0.05),
        "one step (lambda 0)": with_settings(base, "learner", trace=0.0),
        "no right of way": with_settings(base, "env", right_of_way=False),
        "one view": with_settings(base, "evaluation", symmetric=False),
        "ends at 95 %": with_settings(base, "training", coverage_target=base.env.coverage_target),
    }
    for name in feature_slices(base.env):
        table[f"without {name}"] = with_settings(base, "env", blind_to=(name,))
    for name in ("bonus", "perimeter", "conflict", "building_hit", "violation", "energy"):
        table[f"without reward {name}"] = without_term(base, name)
    return table


def train_seeds(config: RunConfig, seeds: int, episodes: int) -> list[dict[str, float]]:
    """Final evaluations to the horizon, one for each seed; compiled once."""
    trainer = make_trainer(config)
    env = dataclasses.replace(config.env, coverage_target=1.0)
    evaluate = evaluator(UrbanGrid(env, config.domain), trainer.policy, batch=64)
    found = []
    for seed in range(seeds):
        state = trainer.init(seed)
        state, _ = trainer.iterate(state, config.iterations)
        figures, _ = evaluate(state.learner.ema["agent"], 0, episodes, SELECTION)
        found.append({name: float(np.mean(figures[name])) for name in METRICS})
    return found


def summary(name: str, reports: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds with 95 % t intervals."""
    figures = {metric: [report[metric] for report in reports] for metric in METRICS}
    return {"variant": name, "per_seed": reports, **over_seeds(figures)}


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""

    def cell(row: dict[str, Any], name: str, form: str) -> str:
        low, high = row[f"{name}_ci95"]
        return f"{form.format(row[name])} ({form.format(low)} to {form.format(high)})"

    forms = {"coverage": "{:.1%}", "t90": "{:.1f}", "collision_rate": "{:.3%}",
             "collided_drones": "{:.1%}", "violation_rate": "{:.3%}"}  # fmt: skip
    show(
        "Final policies flown to the horizon, 95 % intervals over seeds",
        ("variant", *(name.replace("_", " ") for name in forms)),
        [(row["variant"], *(cell(row, *item) for item in forms.items())) for row in rows],
    )


def main() -> None:
    """Trains, evaluates, shows and saves."""
    line = parser(__doc__)
    line.add_argument("--preset", default="quick", choices=list(PRESETS))
    line.add_argument("--seeds", type=int, default=5)
    line.add_argument("--budget", type=int, default=200_000, help="env steps")
    line.add_argument("--episodes", type=int, default=128, help="of each evaluation")
    line.add_argument("--only", nargs="*", help="these variants")
    line.add_argument("--name", default="ablations", help="of the result file")
    arguments = parse(line)
    base = with_training(preset(arguments.preset), env_steps=arguments.budget)
    about = {name: getattr(arguments, name) for name in ("preset", "budget", "seeds", "episodes")}
    about["config"] = json.loads(json.dumps(to_dict(base)))
    rows = kept_rows(arguments.out / f"{arguments.name}.json", about)
    table = variants(base)
    chosen = arguments.only or list(table)
    if unknown := set(chosen) - set(table):
        line.error(f"--only {' '.join(unknown)}: variants are {', '.join(table)}")
    enable_cache()
    for name in chosen:
        config = table[name]
        if any(row["variant"] == name for row in rows):
            continue
        rows.append(summary(name, train_seeds(config, arguments.seeds, arguments.episodes)))
        save(arguments.name, about | {"rows": rows}, arguments.out)
        show_rows(rows[-1:])
    show_rows(rows)


if __name__ == "__main__":
    main()
