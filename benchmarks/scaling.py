"""What does more cost? Microseconds per env step and per drone step against the size of the task.

One size grows at a time, the others stay the preset's: drones; the city, at the same cell size and
footprint; swarms; and seeds, as trainers vmapped in one program on one device (per env step of
all seeds).
"""

from __future__ import annotations

from typing import Any

from common import (
    COLOURS,
    chained,
    compile_program,
    figure,
    measure,
    parse,
    parser,
    save,
    save_figure,
    show,
    with_env,
)
from programs import begin_program, flight_program, swarm_keys

from jaxqmix.config import RunConfig
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.presets import PRESETS, preset
from jaxqmix.training import make_trainer

ENV_STEPS = 10_000
"""Env steps of one measurement of the world, over all swarms."""


def row(what: str, size: float, drones: int, work: int, seconds: dict, needs: dict) -> dict:
    """One measurement as microseconds."""
    each = {name: seconds[name] / work * 1e6 for name in ("median", "lowest", "highest")}
    return {
        "what": what,
        "size": size,
        "microseconds_per_env_step": each,
        "microseconds_per_drone_step": each["median"] / drones,
        **needs,
    }


def world(what: str, size: float, config: RunConfig, swarms: int, repeats: int) -> dict[str, Any]:
    """The world with observations under random actions."""
    env = UrbanGrid(config.env, config.domain)
    steps = max(10, ENV_STEPS // swarms)
    begun = begin_program(env, swarms)[0](swarm_keys(0, swarms))
    call, needs = flight_program(env, begun, steps)
    seconds = measure(call, repeats)
    return row(what, size, env.config.drones, swarms * steps, seconds, needs)


def trainers(seeds: int, config: RunConfig, repeats: int) -> dict[str, Any]:
    """A training iteration, several seeds side by side in one program."""
    trainer = make_trainer(config, seeds=seeds)
    program, needs = compile_program(trainer.iterate, trainer.state_shapes, 1)
    state = trainer.init(range(seeds))
    seconds = measure(chained(lambda state: program(state, 1)[0], state), repeats)
    work = seeds * config.iteration_steps
    return row("seeds", seeds, config.env.drones, work, seconds, needs)


def plot(rows: list[dict[str, Any]], panels: list[Any]) -> None:
    """A panel per size, per env step and per drone step."""
    names = dict.fromkeys(r["what"] for r in rows)
    for axes, what in zip(panels, names, strict=True):
        mine = [r for r in rows if r["what"] == what]
        sizes = [r["size"] for r in mine]
        env_step = [r["microseconds_per_env_step"]["median"] for r in mine]
        drone_step = [r["microseconds_per_drone_step"] for r in mine]
        axes.loglog(sizes, env_step, marker="o", color=COLOURS[0], label="per env step")
        axes.loglog(sizes, drone_step, marker="o", color=COLOURS[1], label="per drone step")
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(what)
    panels[0].set_ylabel("microseconds")
    panels[0].legend(frameon=False)


def main() -> None:
    """Measures, shows, draws and saves."""
    line = parser(__doc__, repeats=3)
    line.add_argument("--preset", default="full", choices=list(PRESETS))
    line.add_argument("--drones", type=int, nargs="*", default=[5, 20, 100])
    line.add_argument("--city", type=float, nargs="*", default=[2.5, 5.0, 20.0], help="side, km")
    line.add_argument("--swarms", type=int, nargs="*", default=[16, 64, 256])
    line.add_argument("--seeds", type=int, nargs="*", default=[1, 4])
    arguments = parse(line)
    base, repeats = preset(arguments.preset), arguments.repeats
    usual = base.training.swarms
    rows = []
    for drones in arguments.drones:
        rows.append(world("drones", drones, with_env(base, drones=drones), usual, repeats))
    for side in arguments.city:
        config = with_env(base, city_width=side * 1000, city_length=side * 1000)
        rows.append(world("city side (km)", side, config, usual, repeats))
    for swarms in arguments.swarms:
        rows.append(world("swarms", swarms, base, swarms, repeats))
    rows += [trainers(seeds, base, repeats) for seeds in arguments.seeds]
    show(
        f"Scaling around {arguments.preset}; seeds train, the rest is the world with observations",
        ("what", "size", "us per env step", "us per drone step", "MiB/device", "compile (s)"),
        [
            (r["what"], f"{r['size']:g}", r["microseconds_per_env_step"]["median"],
             r["microseconds_per_drone_step"], r["bytes_per_device"] / 2**20, r["compile_seconds"])
            for r in rows
        ],
    )  # fmt: skip
    if rows:
        drawn, panels = figure(len({r["what"] for r in rows}), width=3.6)
        plot(rows, panels)
        save_figure("scaling", drawn, arguments.out)
    save("scaling", {"preset": arguments.preset, "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
