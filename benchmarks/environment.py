"""How fast is the world alone? Env steps per second under random actions.

For every number of drones and of swarms: env steps/s without and with observations, drone steps/s
with them, microseconds to begin one episode, and bytes per swarm.
"""

from __future__ import annotations

from typing import Any

import jax
from common import (
    COLOURS,
    figure,
    measure,
    parse,
    parser,
    per_second,
    save,
    save_figure,
    show,
    with_env,
)
from programs import begin_program, flight_program, swarm_keys, swarm_mesh

from jaxqmix.compilation import tree_bytes
from jaxqmix.distributed import device_memory
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.planners.chance import Random
from jaxqmix.presets import PRESETS, preset
from jaxqmix.rollout import Swarms, begin

ENV_STEPS = 20_000
"""Env steps of one measurement, over all swarms."""


def steps_for(swarms: int) -> int:
    """Steps of every swarm in one measurement."""
    return min(400, max(10, ENV_STEPS // swarms))


def fly(env: UrbanGrid, swarms: Swarms, observations: bool, repeats: int) -> dict[str, Any]:
    """Env steps per second under random actions, and what the program needed."""
    count = swarms.done.shape[0]
    steps = steps_for(count)
    call, needs = flight_program(env, swarms, steps, observations)
    speed = per_second(count * steps, measure(call, repeats))
    return {"steps": steps, "env_steps_per_second": speed, **needs}


def measure_world(env: UrbanGrid, swarms: int, repeats: int) -> dict[str, Any] | None:
    """One row; None where the swarms would not fit into memory."""
    keys = jax.random.split(jax.random.key(0), 1)
    one = jax.eval_shape(lambda keys: begin(keys, env, Random()), keys)
    row = {"drones": env.config.drones, "swarms": swarms, "bytes_per_swarm": tree_bytes(one)}
    # Compiled without taking any memory. Beginning them needs more than flying them.
    program, needs = begin_program(env, swarms)
    devices = list(swarm_mesh(swarms).devices.flat)
    needed, free = needs["bytes_per_device"] * len(devices), device_memory(devices)
    if free is not None and needed > free:
        print(f"{swarms} swarms of {env.config.drones} drones are skipped: they need "
              f"{needed / 2**30:.1f} GiB of the {free / 2**30:.1f} GiB there")  # fmt: skip
        return None
    keys = swarm_keys(0, swarms)
    seconds = measure(lambda: program(keys), repeats)
    row["begin"] = {"microseconds": seconds["median"] / swarms * 1e6, **needs}
    row["world"] = fly(env, program(keys), False, repeats)
    row["observed"] = fly(env, program(keys), True, repeats)
    return row


def plot(rows: list[dict[str, Any]], axes: Any) -> None:
    """Env steps per second against swarms, a colour per number of drones."""
    for colour, drones in zip(COLOURS, sorted({row["drones"] for row in rows}), strict=False):
        mine = [row for row in rows if row["drones"] == drones]
        swarms = [row["swarms"] for row in mine]
        for kind, style in (("world", "--"), ("observed", "-")):
            speeds = [row[kind]["env_steps_per_second"]["median"] for row in mine]
            label = f"{drones} drones" if kind == "observed" else None
            axes.loglog(swarms, speeds, style, marker="o", color=colour, label=label)
    axes.set_xlabel("swarms")
    axes.set_ylabel("env steps/s (dashed: without observations)")
    axes.legend(frameon=False)


def main() -> None:
    """Measures, shows, draws and saves."""
    line = parser(__doc__, repeats=3)
    line.add_argument("--preset", default="full", choices=list(PRESETS), help="whose city")
    line.add_argument("--drones", type=int, nargs="+", default=[5, 10, 20, 50])
    line.add_argument("--swarms", type=int, nargs="+", default=[1, 64, 1024])
    line.add_argument("--cell-size", type=float, help="metres; the preset's by default")
    line.add_argument("--sensing", choices=["footprint", "probabilistic"],
                      help="the preset's by default")  # fmt: skip
    arguments = parse(line)
    asked = {"cell_size": arguments.cell_size, "sensing": arguments.sensing}
    changes = {name: value for name, value in asked.items() if value}
    results: dict[str, Any] = {"preset": arguments.preset, "rows": (rows := []), **changes}
    for drones in arguments.drones:
        config = with_env(preset(arguments.preset), drones=drones, **changes)
        env = UrbanGrid(config.env, config.domain)
        for swarms in sorted(arguments.swarms):
            if row := measure_world(env, swarms, arguments.repeats):
                rows.append(row)
                save("environment", results, arguments.out)
    show(
        f"The world alone: {arguments.preset}, cells of {env.config.cell_size:g} m",
        ("drones", "swarms", "env steps/s", "with observations", "drone steps/s", "begin (us)",
         "bytes/swarm", "compile (s)"),
        [
            (r["drones"], r["swarms"], r["world"]["env_steps_per_second"]["median"],
             r["observed"]["env_steps_per_second"]["median"],
             r["observed"]["env_steps_per_second"]["median"] * r["drones"],
             r["begin"]["microseconds"], r["bytes_per_swarm"], r["observed"]["compile_seconds"])
            for r in rows
        ],
    )  # fmt: skip
    drawn, panels = figure(1)
    plot(rows, panels[0])
    save_figure("environment", drawn, arguments.out)
    save("environment", results, arguments.out)


if __name__ == "__main__":
    main()
