"""What a GPU does with this project, in a few minutes and one process, the most telling first.

    python benchmarks/gpu.py --minutes 6

In turn: the card's own limits, training at several sizes as the bare program and as `jaxqmix train`
runs it, what a traced iteration spends its time on, the world alone, and the recipes of scale `gpu`
until their budget: seconds and t90 over env steps. Every stage is saved when it is done; what the
time does not allow is left out. On a CPU, `--small` tries the whole path in a minute.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import (
    RESULTS,
    chained,
    compile_program,
    measure,
    parse,
    parser,
    per_second,
    save,
    with_env,
    with_training,
)
from programs import begin_program, flight_program, swarm_keys

from jaxqmix.compilation import enable_cache
from jaxqmix.config import RunConfig
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.metrics import read
from jaxqmix.presets import preset
from jaxqmix.runner import Callback, train
from jaxqmix.training import make_trainer
from jaxqmix.validate import MISSION

STEPS = 20
"""Env steps of the world in a call."""
DEAREST = 30
"""Kernels named of a trace."""
RESERVE = 20.0
"""Seconds that must be left for another stage to begin."""

Stage = tuple[str, Callable[[], dict[str, Any]]]


def limits(small: bool) -> dict[str, Any]:
    """The device's own: bytes copied, products, and an empty call."""
    numbers, side = (2**22, 256) if small else (2**29, 8192)
    vector = jnp.ones(numbers, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    found = {"copy_TB_per_second": 8 * numbers / measure(lambda: add(vector))["median"] / 1e12}
    kinds = (("float32", "highest"), ("float32", "default"), ("bfloat16", "default"))
    for dtype, precision in kinds:
        matrix = jnp.ones((side, side), dtype)
        product = jax.jit(lambda a, precision=precision: jnp.dot(a, a, precision=precision))
        seconds = measure(lambda f=product, a=matrix: f(a))["median"]
        found[f"TFLOPs_{dtype}_{precision}"] = 2 * side**3 / seconds / 1e12
    few = jnp.ones(8)
    found["empty_call_microseconds"] = measure(lambda: add(few), 100)["median"] * 1e6
    return found


def training(config: RunConfig, repeats: int, trace: bool = False) -> dict[str, Any]:
    """Iterations of training as one program: env steps/s, bytes, and where a trace spends them."""
    trainer = make_trainer(config)
    at_once = max(1, 200_000 // config.iteration_steps)
    program, needs = compile_program(trainer.iterate, trainer.state_shapes, at_once)
    call = chained(lambda state: program(state, at_once)[0], trainer.init(0))
    seconds = measure(call, repeats)
    found = {
        "preset": config.preset,
        "mode": config.training.mode,
        "drones": config.env.drones,
        "swarms": config.training.swarms,
        "env_steps_per_second": per_second(at_once * config.iteration_steps, seconds),
        **needs,
    }
    return found | ({"trace": traced(call, at_once)} if trace else {})


def traced(call: Callable[[], Any], iterations: int) -> dict[str, Any]:
    """A call under the profiler: milliseconds per iteration by kernel, the dearest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        events = [each for file in Path(folder).rglob("*.trace.json.gz") for each in kernels(file)]
    milliseconds, count = collections.Counter(), collections.Counter()
    for name, microseconds in events:
        milliseconds[name] += microseconds / 1e3 / iterations
        count[name] += 1
    return {
        "kernels_per_iteration": len(events) / iterations,
        "milliseconds_per_iteration": sum(milliseconds.values()),
        "dearest": [
            [name[:100], round(spent, 4), round(count[name] / iterations, 2)]
            for name, spent in milliseconds.most_common(DEAREST)
        ],
    }


def kernels(file: Path) -> Iterator[tuple[str, float]]:
    """Names and microseconds of what ran on a GPU's streams, from a trace of the profiler."""
    with gzip.open(file, "rt", encoding="utf-8") as text:
        events = json.load(text)["traceEvents"]
    names = {
        (each["name"], each["pid"], each.get("tid")): each["args"].get("name", "")
        for each in events
        if each.get("ph") == "M" and "name" in each.get("args", {})
    }
    processes = {pid: name for (kind, pid, _), name in names.items() if kind == "process_name"}
    for each in events:
        thread = names.get(("thread_name", each.get("pid"), each.get("tid")), "")
        on_gpu = "GPU" in processes.get(each.get("pid"), "") and thread.startswith("Stream")
        if each.get("ph") == "X" and on_gpu:
            yield each["name"], each["dur"]


def world(config: RunConfig, swarms: int, repeats: int, observations: bool) -> dict[str, Any]:
    """The world alone, under random actions."""
    env = UrbanGrid(config.env, config.domain)
    begun = begin_program(env, swarms)[0](swarm_keys(0, swarms))
    call, needs = flight_program(env, begun, STEPS, observations)
    return {
        "drones": config.env.drones,
        "cell_size": config.env.cell_size,
        "swarms": swarms,
        "observations": observations,
        "env_steps_per_second": per_second(swarms * STEPS, measure(call, repeats)),
        **needs,
    }


class Stopwatch(Callback):
    """Notes when a run had compiled, when it evaluated, and its own env steps/s."""

    def __init__(self):
        self.started, self.noted = time.perf_counter(), {"evaluations": []}

    def _now(self) -> float:
        return round(time.perf_counter() - self.started, 2)

    def on_compiled(self, seconds: float, programs: int, cached: int) -> None:
        """The programs are ready."""
        self.noted |= {"compile_seconds": seconds, "programs": programs, "cached": cached}

    def on_evaluation(self, report: dict[str, Any]) -> None:
        """An evaluation, and whether it met the criteria."""
        kept = ("env_steps", "final", "t90", "coverage", "return", "collided_drones")
        row = {name: report[name] for name in kept}
        met = all(report["success"].values())
        self.noted["evaluations"].append({"seconds": self._now(), "met": met, **row})


def whole_run(config: RunConfig) -> dict[str, Any]:
    """`jaxqmix train` from nothing but the cache: its speed, evaluations and seconds in all."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", callback=watch)
        reports = [row for row in read(Path(folder) / "run") if row["kind"] == "training"]
    speeds = sorted(row["env_steps_per_second"] for row in reports[1:] or reports)
    return {
        "preset": config.preset,
        "scale": config.scale,
        "swarms": config.training.swarms,
        "env_steps": config.budget,
        "seconds": round(time.perf_counter() - watch.started, 2),
        "env_steps_per_second_of_the_run": speeds[len(speeds) // 2],
        **watch.noted,
    }


def stages(small: bool, repeats: int) -> list[Stage]:
    """What is measured, the most telling first."""
    full = preset("full")
    if small:
        few = with_training(MISSION, env_steps=2 * MISSION.budget)
        return [
            ("limits", lambda: limits(True)),
            ("training_8", lambda: training(MISSION, 1, trace=True)),
            ("world_8", lambda: world(MISSION, 8, 1, True)),
            ("run_tiny", lambda: whole_run(few)),
        ]

    def sized(swarms: int, **settings: Any) -> RunConfig:
        return with_training(full, swarms=swarms, **settings)

    fine = with_env(full, cell_size=10.0)
    return [
        ("limits", lambda: limits(False)),
        ("run_full", lambda: whole_run(preset("full", "gpu"))),
        ("training_2048", lambda: training(preset("full", "gpu"), repeats, trace=True)),
        ("training_64", lambda: training(full, repeats, trace=True)),
        ("run_full_64", lambda: whole_run(full)),
        ("training_16384", lambda: training(sized(16_384), repeats)),
        ("world_8192", lambda: world(full, 8192, repeats, True)),
        ("world_8192_bare", lambda: world(full, 8192, repeats, False)),
        ("world_32768", lambda: world(full, 32_768, repeats, True)),
        ("world_4096_10m", lambda: world(fine, 4096, repeats, True)),
        ("run_quick", lambda: whole_run(preset("quick", "gpu"))),
        ("run_scale20", lambda: whole_run(preset("scale20", "gpu"))),
        ("training_64_replay", lambda: training(sized(64, mode="replay"), repeats)),
    ]


def main(arguments: argparse.Namespace) -> None:
    """Runs the stages until the time is over."""
    started, results = time.monotonic(), {}
    name = "gpu_small" if arguments.small else jax.devices()[0].device_kind.replace(" ", "_")
    for stage, call in stages(arguments.small, arguments.repeats):
        left = 60 * arguments.minutes - (time.monotonic() - started)
        if left < RESERVE:
            print(f"{stage} and what follows are left out: the time is over")
            break
        print(f"{time.monotonic() - started:6.1f} s  {stage}", flush=True)
        try:
            results[stage] = call()
        except Exception as error:  # The other stages are worth having.
            results[stage] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        save(name, results, arguments.out)


if __name__ == "__main__":
    line = parser(__doc__, repeats=10)
    line.set_defaults(out=RESULTS / "gpu")
    line.add_argument("--minutes", type=float, default=6.0, help="when to begin nothing more")
    line.add_argument("--small", action="store_true", help="tiny sizes, to try it on a CPU")
    given = parse(line)
    enable_cache()
    main(given)
