"""How much faster than others? Fed-MARL and JaxMARL against jaxqmix, measured in turn in one run.

Checkouts are given by path; what is missing is skipped with a line that says so. Beside every
number stands what is not comparable about it. Ours uses all devices, theirs as they do by default.

  git clone https://github.com/JeyadeepakUR/Fed-MARL; pip install torch gymnasium PyYAML
  git clone https://github.com/FLAIROx/JaxMARL; pip install --no-deps jaxmarl jaxtyping \\
    wadler_lindig safetensors gymnax seaborn pandas flashbax hydra-core omegaconf \\
    antlr4-python3-runtime==4.9.3
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import rival_fedmarl
import rival_jaxmarl
from common import (
    chained,
    parse,
    parser,
    rate,
    save,
    show,
    versus,
    with_env,
    with_training,
)
from programs import begin_program, flight_program, swarm_keys

from jaxqmix.config import RunConfig
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.presets import preset
from jaxqmix.training import make_trainer

MISSIONS = {"quick": (5, 1000.0), "full": (10, 5000.0), "scale20": (20, 5000.0)}
"""Drones and side of the city, metres, of the missions of Fed-MARL's users."""
AT_ONCE = 4
"""Iterations of training in one call."""
STEPS = 50
"""Env steps of every swarm in one call of a world."""
NOTES = {
    "fed-marl world": "they observe a block of obstacles, we views of the unseen area; they fly "
    "higher and see further; one world against ours side by side; resets left out",
    "fed-marl training": "they take a gradient step on one transition after every env step, we 8 "
    "on a rollout of all swarms; a network for each drone against a shared one; their resets "
    "left out",
    "jaxmarl world": "another world, without city, map or radio; their steps include resets, ours "
    "do not; ours on all devices, theirs on one",
    "jaxmarl training, our world": "another world with longer observations; their mixer has two "
    "layers more, our agent layer norms and a dueling head; equal updates and batches; ours on all "
    "devices, theirs on one",
    "jaxmarl training, their world": "their mixer has two layers more, our agent layer norms and a "
    "dueling head; equal updates and batches; ours on all devices, theirs on one",
}
"""What is not comparable."""


def our_world(config: RunConfig, swarms: int, seconds: float) -> Callable[[], float]:
    """Measures env steps per second with observations, at every call."""
    env = UrbanGrid(config.env, config.domain)
    begun = begin_program(env, swarms)[0](swarm_keys(0, swarms))
    call, _ = flight_program(env, begun, STEPS)
    return lambda: rate(call, swarms * STEPS, seconds)


def our_training(state: Any, iterate: Callable, work: int, seconds: float) -> Callable[[], float]:
    """Measures env steps per second of training iterations of `work` env steps, at every call."""
    call = chained(lambda state: iterate(state, AT_ONCE)[0], state)
    for _ in range(2):  # a world's reset and its step may differ in types: it compiles twice
        jax.block_until_ready(call())
    return lambda: rate(call, AT_ONCE * work, seconds)


def row(what: str, setting: str, unit: str, found: dict[str, Any], scale: float = 1) -> dict:
    """A row; `scale` turns env steps into the unit."""
    for side in ("ours", "theirs"):
        found[side] = {name: value * scale for name, value in found[side].items()}
    return {"what": what, "setting": setting, "unit": unit, **found, "but": NOTES[what]}


def fed_marl(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Its environment and its single-step training against ours, at equal city, cells and drones.

    Our sensing is theirs: every look sees a cell by chance.
    """
    for cell in arguments.cells:
        for name in arguments.missions:
            drones, side = MISSIONS[name]
            theirs = rival_fedmarl.FedMarl(arguments.fed_marl, drones, side, cell)
            features = theirs.features
            config = with_env(preset(name), cell_size=cell, sensing="probabilistic", no_fly_zones=1)
            config = with_training(config, swarms=arguments.swarms)
            setting = f"{drones} drones, {side / 1000:g} km, cells {cell:g} m"

            def theirs_per_second(step: Callable[[], None]) -> Callable[[], float]:
                def measured() -> float:
                    with rival_fedmarl.quietly():
                        return rate(step, 1, arguments.seconds)

                return measured

            ours = our_world(config, arguments.swarms, arguments.seconds)
            found = versus(ours, theirs_per_second(theirs.step), arguments.repeats)
            found |= {"their_features": features, "their_reset_seconds": theirs.reset_seconds}
            yield row("fed-marl world", setting, "env steps/s", found)
            theirs.make_agent()
            trainer = make_trainer(config)
            state, work = trainer.init(0), config.iteration_steps
            ours = our_training(state, trainer.iterate, work, arguments.seconds)
            found = versus(ours, theirs_per_second(theirs.train_step), arguments.repeats)
            yield row("fed-marl training", setting, "env steps/s", found)


def jaxmarl_worlds(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Its environments against our world with as many drones and swarms."""
    swarms = arguments.swarms
    for name in rival_jaxmarl.WORLDS:
        env = rival_jaxmarl.make_world(name)
        call = rival_jaxmarl.world_flight(env, swarms, STEPS)
        theirs = functools.partial(rate, call, swarms * STEPS, arguments.seconds)
        config = with_env(preset("quick"), drones=env.num_agents)
        ours = our_world(config, swarms, arguments.seconds)
        found = versus(ours, theirs, arguments.repeats)
        setting = f"{name}, {env.num_agents} drones, {swarms} swarms"
        yield row("jaxmarl world", setting, "drone steps/s", found, scale=env.num_agents)


def jaxmarl_training(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Its learner on simple_spread against ours, at equal network, rollouts and updates."""
    settings = rival_jaxmarl.their_settings(arguments.jaxmarl, arguments.env_steps)
    from jaxqmix.adapters.jaxmarl import JaxMarlWorld

    world = JaxMarlWorld(rival_jaxmarl.make_world("MPE_simple_spread_v3"))
    for algorithm in arguments.algorithms:
        theirs = rival_jaxmarl.their_training(arguments.jaxmarl, algorithm, settings)
        config = rival_jaxmarl.matched(algorithm, settings)
        trainer = make_trainer(config)
        theirs_world = rival_jaxmarl.trainer_in(world, config)
        for where, each in {"their world": theirs_world, "our world": trainer}.items():
            ours = our_training(
                each.init(0), each.iterate, config.iteration_steps, arguments.seconds
            )
            found = versus(ours, theirs, arguments.repeats)
            setting = f"{algorithm}, 3 drones, {settings['NUM_ENVS']} swarms"
            yield row(f"jaxmarl training, {where}", setting, "env steps/s", found)


PARTS = {"fed-marl": fed_marl, "worlds": jaxmarl_worlds, "training": jaxmarl_training}
NEEDS = {"fed-marl": "fed_marl", "worlds": None, "training": "jaxmarl"}
"""Which checkout each part needs."""


def require_checkout(option: str | None, arguments: argparse.Namespace) -> None:
    """Raises `FileNotFoundError` when the option names no folder."""
    path = getattr(arguments, option) if option else Path()
    if path is None or not path.is_dir():
        raise FileNotFoundError(f"give a checkout with --{option.replace('_', '-')} PATH")


def main() -> None:
    """Measures, shows and saves."""
    line = parser(__doc__, repeats=3)
    line.add_argument("--name", default="rivals", help="of the result's file")
    line.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    line.add_argument("--fed-marl", type=Path, help="checkout of Fed-MARL")
    line.add_argument("--jaxmarl", type=Path, help="checkout of JaxMARL")
    line.add_argument("--missions", nargs="+", default=list(MISSIONS), choices=list(MISSIONS))
    line.add_argument("--cells", type=float, nargs="+", default=[10.0, 50.0], help="metres")
    line.add_argument("--swarms", type=int, default=64)
    line.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    line.add_argument("--algorithms", nargs="+", default=["qmix"], choices=["qmix", "vdn"])
    line.add_argument("--env-steps", type=int, default=60_000, help="of a run of JaxMARL")
    arguments = parse(line)
    rows: list[dict[str, Any]] = []
    skipped = []
    for name in arguments.parts:
        try:
            require_checkout(NEEDS[name], arguments)
            for found in PARTS[name](arguments):
                rows.append(found)
                save(arguments.name, {"rows": rows, "skipped": skipped}, arguments.out)
                print(f"{found['what']}, {found['setting']}: {found['times']['median']:.3g} times")
        except (ImportError, FileNotFoundError) as error:
            skipped.append(f"{name} is skipped: {error}")
            print(skipped[-1])
    show(
        "Rivals (medians; every pair measured in turn)",
        ("what", "setting", "theirs", "ours", "unit", "times", "not comparable"),
        [
            (r["what"], r["setting"], r["theirs"]["median"], r["ours"]["median"], r["unit"],
             r["times"]["median"], r["but"])
            for r in rows
        ],
    )  # fmt: skip
    if rows:
        save(arguments.name, {"rows": rows, "skipped": skipped}, arguments.out)


if __name__ == "__main__":
    main()
