"""How fast is training, and what does it spend its time on?

End-to-end env steps/s of both modes against the number of swarms and of drones, split by leaving
stages out: the world alone (with new episodes), observations, the network's forward pass (with
exploration and recording), and the rest, which is the update (in mode `replay` with storing and
drawing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from common import (
    COLOURS,
    chained,
    compile_program,
    figure,
    measure,
    parse,
    parser,
    per_second,
    save,
    save_figure,
    show,
    with_env,
    with_settings,
    with_training,
)
from programs import exploring, flight_program, next_keys, sequence_specs, swarm_keys

from jaxqmix.config import RunConfig
from jaxqmix.distributed import REPLICATED, SHARDED, on_each_device, shardings
from jaxqmix.presets import PRESETS, preset
from jaxqmix.rollout import Swarms, auto_reset, auto_reset_count, rollout
from jaxqmix.training import Trainer, make_trainer

STAGES = ("world", "observation", "network", "update")
CALLS = 4
"""Calls of a program in one measurement."""


def timed(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Spread of the seconds of one call; several are measured together."""
    seconds = measure(lambda: [call() for _ in range(CALLS)][-1], repeats)
    return {name: seconds[name] / CALLS for name in ("median", "lowest", "highest")}


def rollout_stages(trainer: Trainer, repeats: int) -> dict[str, float]:
    """Seconds that one rollout of all swarms spends on its stages."""
    env, training, steps = trainer.env, trainer.config.training, trainer.config.training.rollout
    keys = swarm_keys(1, training.swarms, trainer.mesh)

    def begin_anew(keys: jax.Array, swarms: Swarms, parameters: Any) -> tuple:
        keys, now = next_keys(keys)
        count = auto_reset_count(env.horizon, keys.shape[0], steps)
        return keys, auto_reset(now[0], swarms, env, exploring(trainer, parameters), count)

    def explore(keys: jax.Array, swarms: Swarms, parameters: Any) -> tuple:
        keys, now = next_keys(keys)
        policy = exploring(trainer, parameters)
        swarms, sequences, _ = rollout(now[0], swarms, policy, env, steps)
        return keys, swarms, sequences

    def seconds(function: Callable, *outputs: Any) -> float:
        state = trainer.init(0)
        parameters, carry = state.learner.parameters["agent"], (keys, state.swarms)
        spread = on_each_device(function, trainer.mesh, (SHARDED, SHARDED, REPLICATED), outputs)
        pinned = shardings(trainer.mesh, outputs)
        program, _ = compile_program(
            spread, *carry, parameters, donate_argnums=1, out_shardings=pinned
        )
        return timed(chained(lambda c: program(*c, parameters)[:2], carry), repeats)["median"]

    flown, observed = (
        timed(flight_program(env, trainer.init(0).swarms, steps, seen)[0], repeats)["median"]
        for seen in (False, True)
    )
    return {
        "world": flown + seconds(begin_anew, SHARDED, SHARDED),
        "observation": observed - flown,
        "network": seconds(explore, SHARDED, SHARDED, sequence_specs()) - observed,
    }


def measure_training(config: RunConfig, modes: list[str], repeats: int) -> list[dict[str, Any]]:
    """One row per mode."""
    rows = []
    for mode in modes:
        trainer = make_trainer(with_training(config, mode=mode))
        if not rows:
            stages = rollout_stages(trainer, repeats)
        state = trainer.init(0)
        program, needs = compile_program(trainer.iterate, state, 1)
        seconds = timed(chained(lambda s, run=program: run(s, 1)[0], state), repeats)
        update = seconds["median"] - sum(stages.values())
        rows.append(
            {
                "mode": mode,
                "drones": config.env.drones,
                "swarms": config.training.swarms,
                "devices": trainer.mesh.size,
                "env_steps_per_second": per_second(config.iteration_steps, seconds),
                "microseconds_per_env_step": {
                    name: value / config.iteration_steps * 1e6
                    for name, value in {**stages, "update": update}.items()
                },
                **needs,
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], axes: Any) -> None:
    """Microseconds per env step, a stack of stages for every row."""
    names = [f"{r['mode']}\n{r['drones']} drones\n{r['swarms']} swarms" for r in rows]
    bottom = [0.0] * len(rows)
    for stage, colour in zip(STAGES, COLOURS, strict=False):
        heights = [max(r["microseconds_per_env_step"][stage], 0.0) for r in rows]
        axes.bar(names, heights, 0.6, bottom, color=colour, label=stage)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_ylabel("microseconds per env step")
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(frameon=False)


def main() -> None:
    """Measures, shows, draws and saves."""
    line = parser(__doc__, repeats=3)
    line.add_argument("--preset", default="full", choices=list(PRESETS))
    line.add_argument("--modes", nargs="+", default=["online", "replay"],
                      choices=["online", "replay"])  # fmt: skip
    line.add_argument("--swarms", type=int, nargs="+", default=[64, 256],
                      help="with the preset's drones")  # fmt: skip
    line.add_argument("--drones", type=int, nargs="+", default=[20],
                      help="with the first number of swarms")  # fmt: skip
    arguments = parse(line)
    base = preset(arguments.preset)
    sizes = [(base.env.drones, swarms) for swarms in arguments.swarms]
    sizes += [(drones, arguments.swarms[0]) for drones in arguments.drones]
    rows = []
    for drones, swarms in dict.fromkeys(sizes):
        config = with_training(with_env(base, drones=drones), swarms=swarms)
        capacity = max(config.replay.capacity, swarms)
        config = with_settings(config, "replay", batch=swarms, capacity=capacity)  # equal work
        rows += measure_training(config, arguments.modes, arguments.repeats)
    show(
        f"Training: {arguments.preset}, {base.training.rollout}-step rollouts; stages in "
        "microseconds per env step",
        ("mode", "drones", "swarms", "env steps/s", *STAGES, "compile (s)"),
        [
            (r["mode"], r["drones"], r["swarms"], r["env_steps_per_second"]["median"],
             *r["microseconds_per_env_step"].values(), r["compile_seconds"])
            for r in rows
        ],
    )  # fmt: skip
    drawn, (axes,) = figure(1, width=2.5 + 1.1 * len(rows))
    plot(rows, axes)
    save_figure("training", drawn, arguments.out)
    save("training", {"preset": arguments.preset, "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
