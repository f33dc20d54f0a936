"""What does it cost that sites share no flights? Central, federated and alone, at equal env steps.

Every variant trains on the worlds of the same sites with the same env steps in all, and its policy
flies held-out cities of every site, and of sites that nobody trained on. `central` is one training
on all sites' worlds; `alone` trains each site by itself, and flies its own and the others' cities.
Saves after every variant and seed; those that the file holds are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from common import kept_rows, machine, parse, parser, save, show

from jaxqmix.compilation import enable_cache, jit
from jaxqmix.config import RunConfig
from jaxqmix.env.domain import Ranges, draw_params, ranges
from jaxqmix.env.urban_grid import UrbanGrid, training_env
from jaxqmix.evaluation import SELECTION
from jaxqmix.federated.aggregate import make_aggregator
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.evaluate import (
    SitesEvaluator,
    by_number,
    everywhere,
    make_evaluator,
    make_tuner,
)
from jaxqmix.federated.local import iterations_of_round
from jaxqmix.federated.rounds import end_round, fly_sites, make_program
from jaxqmix.federated.sites import Site, find_sites
from jaxqmix.presets import PRESETS, preset
from jaxqmix.training import make_trainer
from jaxqmix.types import EnvParams
from jaxqmix.validate import MISSION

METRICS = ("t90", "coverage", "return", "collision_rate")
SETTINGS = ("preset", "env_steps", "local_env_steps", "sites", "per_round", "heterogeneity")
SETTINGS += ("episodes", "strangers", "small")
"""Options that all rows of a file share."""
ATTACKS = ("sign-flip", "scale", "nan", "weight", "noise", "copy")
ROBUST = ("median", "trimmed-mean", "krum", "multi-krum")


@dataclasses.dataclass(frozen=True)
class AllSites(UrbanGrid):
    """A world whose episodes are those of any of several sites."""

    sites: Ranges | None = dataclasses.field(default=None, compare=False)

    def draw_params(self, key: jax.Array) -> EnvParams:
        """Draws a site, and a world of it."""
        which_key, key = jax.random.split(key)
        which = jax.random.randint(which_key, (), 0, self.sites.visibility.shape[0])
        return draw_params(key, jax.tree.map(lambda leaf: leaf[which], self.sites))


def studies(base: FederationConfig) -> dict[str, dict[str, FederationConfig]]:
    """Variants by name, in groups; all of about as many env steps, but for `attacks`, where all
    sites fly in every round."""
    change = dataclasses.replace
    steps_of_round = base.rounds * base.local_env_steps
    return {
        "main": {
            "fedavg": base,
            # Who is away flies nothing: as many more rounds.
            "fedavg, dropout 0.3": change(base, dropout=0.3, rounds=round(base.rounds / 0.7)),
            "mixer at its site": change(base, mixer="local"),
        },
        "local": {
            f"{steps:,} local env steps": change(
                base, local_env_steps=steps, rounds=max(1, steps_of_round // steps)
            )
            for steps in (10_000, 25_000, 50_000, 100_000, 200_000)
            if steps <= steps_of_round
        },
        "rules": {
            rule: change(base, aggregate=rule)
            for rule in ("fedprox", "fedavgm", "fedadam", "fedasync", *ROBUST)
            if base.per_round >= 5
        },
        "attacks": attacked(base) if base.sites >= 7 else {},
        "compression": {
            kind: change(base, compression=kind) for kind in ("int8", "top-k", "low-rank")
        },
        "sites": {f"{count} sites": of_sites(base, count) for count in (4, 10, 50)},
    }


def attacked(base: FederationConfig) -> dict[str, FederationConfig]:
    """Two hostile sites under every rule, and none; all sites fly in all of the rounds.

    Without caps an average takes every finite update as it comes.
    """
    everyone = dataclasses.replace(base, per_round=base.sites, hostile=2)
    rules = {
        "fedavg without caps": dataclasses.replace(everyone, norm_cap=1e12, weight_cap=1e12)
    } | {
        rule: dataclasses.replace(everyone, aggregate=rule)
        for rule in ("fedavg", "median", "multi-krum", "trimmed-mean", "krum")
    }
    return {
        f"{rule}, {attack or 'no attack'}": dataclasses.replace(
            federation, attackers=2 if attack else 0, attack=attack or "copy"
        )
        for attack in (None, *ATTACKS)
        for rule, federation in rules.items()
    }


def of_sites(base: FederationConfig, count: int) -> FederationConfig:
    """Other sites, of which half take part in a round, and as many updates in all."""
    half = count // 2
    rounds = max(1, base.rounds * base.per_round // half)
    return dataclasses.replace(base, sites=count, per_round=half, minimum=2, rounds=rounds)


def federated(
    config: RunConfig, federation: FederationConfig, sites: list[Site], seeds: list[int]
) -> Iterator[tuple[Any, int]]:
    """Trains the global policy for each seed; yields the agent's weights, and env steps."""
    program = make_program(config, federation, sites)
    # Variants that differ by what happens to updates alone share the program of their flights,
    # which takes a minute to compile; the rest takes seconds.
    defaults = FederationConfig(sites=2, per_round=2, minimum=1)
    told = ("aggregate", "attack", "attackers", "hostile", "compression", "minimum")
    told += ("norm_cap", "weight_cap")
    shared = federation.aggregate not in ("fedprox", "fedasync")
    like = dataclasses.replace(federation, **{n: getattr(defaults, n) for n in told if shared})
    fly = flight(config, like, tuple(sites))
    rule = make_aggregator(federation)
    end = jit(lambda state, flown: end_round(state, flown, program, rule))
    for seed in seeds:
        state, steps = program.init(seed), 0
        for _ in range(federation.rounds):
            state, outcome = end(state, fly(state))
            steps += int(outcome.env_steps.sum())
        yield state.server.weights["agent"], steps


@functools.cache
def flight(config: RunConfig, federation: FederationConfig, sites: tuple[Site, ...]) -> Any:
    """The compiled first half of a round."""
    program = make_program(config, federation, sites)
    return jit(lambda state: fly_sites(state, program))


def central(
    config: RunConfig, sites: list[Site], env_steps: int, seeds: list[int]
) -> Iterator[tuple[Any, int]]:
    """Trains one policy on all sites' worlds, for each seed."""
    config = config.replace(**{"training.env_steps": env_steps})
    own = training_env(config)
    env = AllSites(own.config, own.domain, sites=ranges([site.domain for site in sites]))
    trainer = make_trainer(config, env=env)
    for seed in seeds:
        state, _ = trainer.iterate(trainer.init(seed), np.int32(config.iterations))
        yield state.learner.ema["agent"], config.iterations * config.iteration_steps


def alone(
    config: RunConfig,
    federation: FederationConfig,
    sites: list[Site],
    env_steps: int,
    seeds: list[int],
) -> Iterator[tuple[Any, int]]:
    """Trains each site by itself with its part of the env steps; yields agents [K, ...]."""
    # One round of all sites, as long as a site's whole training: schedules fall over it.
    each, count = env_steps // len(sites), len(sites)
    once = dataclasses.replace(
        federation, rounds=1, local_env_steps=each, per_round=count, aggregate="fedavg"
    )
    program = make_program(config, once, sites)
    steps = iterations_of_round(config, once) * config.iteration_steps * count
    tune = make_tuner(program, each, clock=0)
    for seed in seeds:
        states = tune(program.init(seed))
        yield by_number(program, [state.learner.ema["agent"] for state in states]), steps


def flown(evaluate: SitesEvaluator, agent: Any, known: int, given: Any) -> dict[str, float]:
    """Means over the sites' cities, and over the strangers'."""
    agents = everywhere(agent, known + given.strangers)
    figures = evaluate(agents, 0, given.episodes, SELECTION)
    row = {name: float(figures[name][:known].mean()) for name in METRICS}
    return row | {f"{name}_of_strangers": float(figures[name][known:].mean()) for name in METRICS}


def flown_alone(evaluate: SitesEvaluator, agents: Any, known: int, given: Any) -> dict[str, float]:
    """Each site's policy on its own cities, on the other sites', and on the strangers'."""
    parts: dict[str, list[float]] = {}
    for site in range(known):
        agent = everywhere(
            jax.tree.map(lambda leaf: leaf[site], agents),  # noqa: B023
            known + given.strangers,
        )
        figures = evaluate(agent, 0, given.episodes, SELECTION)
        for name in METRICS:
            values = figures[name].mean(axis=1)
            for part, value in (
                ("own", values[site]),
                ("others", np.delete(values[:known], site).mean()),
                ("strangers", values[known:].mean()),
            ):
                parts.setdefault(f"{name}_of_{part}", []).append(float(value))
    row = {name: float(np.mean(values)) for name, values in parts.items()}
    # The figure that stands beside the others': each city flown by its own site's policy.
    return row | {name: row[f"{name}_of_own"] for name in METRICS}


def arguments() -> argparse.Namespace:
    """The command line."""
    line = parser(__doc__)
    line.add_argument("--preset", default="quick", choices=list(PRESETS))
    line.add_argument(
        "--studies", nargs="+", default=["main"], choices=list(studies(FederationConfig()))
    )
    line.add_argument("--variants", nargs="+", help="only these variants of the studies")
    line.add_argument("--seeds", type=int, default=1)
    line.add_argument("--env-steps", type=int, default=500_000, help="of all sites together")
    line.add_argument("--local-env-steps", type=int, default=5_000, help="of a site in a round")
    line.add_argument("--sites", type=int, default=10)
    line.add_argument("--per-round", type=int, default=5)
    line.add_argument("--heterogeneity", type=float, default=1.0)
    line.add_argument("--episodes", type=int, default=16, help="of each site")
    line.add_argument("--strangers", type=int, default=4, help="sites that nobody trains on")
    line.add_argument("--small", action="store_true", help="a tiny mission, to try this out")
    line.add_argument("--name", default="federated", help="of the result's file")
    given = parse(line)
    if given.small:
        given.env_steps, given.local_env_steps, given.sites, given.per_round = 960, 160, 2, 2
        given.episodes, given.strangers, given.name = 2, 1, f"{given.name}_small"
    return given


def main() -> int:
    """Runs the studies that are asked for."""
    given = arguments()
    enable_cache()
    config = MISSION if given.small else preset(given.preset)
    base = FederationConfig(
        sites=given.sites,
        per_round=given.per_round,
        minimum=min(2, given.per_round),
        rounds=max(1, given.env_steps // (given.per_round * given.local_env_steps)),
        local_env_steps=given.local_env_steps,
        heterogeneity=given.heterogeneity,
        strangers=given.strangers,
    )
    sites, strangers = worked_alike(find_sites(base, config))
    total = base.rounds * base.per_round * iterations_of_round(config, base)
    total *= config.iteration_steps
    # As in the preset, exploration ends after a fifth of the budget.
    config = config.replace(**{"training.epsilon_decay_steps": max(1, total // 5)})
    runs: dict[str, Any] = {
        "central": lambda left: central(config, sites, total, left),
        "alone": lambda left: alone(config, base, sites, total, left),
    }
    chosen = {name: f for study in given.studies for name, f in studies(base)[study].items()}
    for name, federation in chosen.items():
        own = sites
        if federation.sites != base.sites:
            own = worked_alike(find_sites(federation, config))[0]
        runs[name] = lambda left, f=federation, own=own: federated(config, f, own, left)
    evaluate = make_evaluator(config, [*sites, *strangers], given.episodes)
    about = {name: getattr(given, name) for name in SETTINGS}
    rows = kept_rows(given.out / f"{given.name}.json", about)
    for name, run in runs.items():
        if not given.variants or name in given.variants:
            measure(name, run, evaluate, len(sites), about | {"rows": rows}, given)
    table(rows)
    return 0


def worked_alike(found: tuple[list[Site], list[Site]]) -> tuple[list[Site], list[Site]]:
    """Sites that all fly whole rounds: variants are compared at equal env steps."""
    return tuple([dataclasses.replace(site, work=1.0) for site in part] for part in found)


def measure(
    name: str,
    run: Any,
    evaluate: SitesEvaluator,
    known: int,
    results: dict[str, Any],
    given: argparse.Namespace,
) -> None:
    """Trains a variant for the seeds that the results lack, flies it, and saves a row for each."""
    rows = results["rows"]
    done = [row["seed"] for row in rows if row["variant"] == name]
    left = [seed for seed in range(given.seeds) if seed not in done]
    started = time.perf_counter()
    for seed, (agent, steps) in zip(left, run(left) if left else (), strict=True):
        fly = flown_alone if name == "alone" else flown
        row = {"variant": name, "seed": seed, "env_steps": steps, "commit": machine()["commit"]}
        row |= fly(evaluate, agent, known, given)
        row["seconds"] = time.perf_counter() - started
        rows.append(row)
        save(given.name, results, given.out)
        figures = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)]
        print(f"{name}, seed {seed}: {', '.join(figures)}", flush=True)
        started = time.perf_counter()


def table(rows: list[dict[str, Any]]) -> None:
    """Prints means over seeds, one row a variant."""
    columns = ("t90", "t90_of_others", "t90_of_strangers", "coverage", "return", "collision_rate")
    lines = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        same = [row for row in rows if row["variant"] == name]
        # A shared policy flies every city, others' or its own.
        means = [
            float(np.mean([row.get(c, row[c.removesuffix("_of_others")]) for row in same]))
            for c in columns
        ]
        lines.append((name, len(same), *means))
    show("on every site's held-out cities", ("variant", "seeds", *columns), lines)


if __name__ == "__main__":
    sys.exit(main())
