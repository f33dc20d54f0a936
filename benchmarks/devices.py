"""Weak scaling: training with as many swarms on each of 1, 2, 4, 8 devices, and in 2 processes.

Env steps/s of training without evaluations, each in processes of its own, for JAX counts its
devices once. On a machine with fewer cores than devices these are simulated: they share the cores,
and what is told is the cost of spreading, not speed: without any, env steps/s stay the same.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import jax
from common import measure, parse, parser, save, show

from jaxqmix.presets import PRESETS, preset
from jaxqmix.processes import is_first, join
from jaxqmix.training import make_trainer


def train(name: str, swarms: int, iterations: int, repeats: int) -> dict:
    """Seconds of so many iterations with so many swarms on each device of this process's mesh."""
    devices = jax.device_count()
    config = preset(name).replace(**{"training.swarms": swarms * devices})
    trainer = make_trainer(config)
    assert trainer.mesh.size == devices
    state = trainer.init(0)

    def call() -> object:
        nonlocal state
        state, metrics = trainer.iterate(state, iterations)
        return metrics

    seconds = measure(call, repeats)
    work = iterations * config.iteration_steps
    return {
        "devices": devices,
        "processes": jax.process_count(),
        "swarms": config.training.swarms,
        "seconds": seconds,
        "env_steps_per_second": work / seconds["median"],
    }


def run(words: list[str], processes: int) -> dict:
    """What processes of this file measure; the first of them tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begun = [
        subprocess.Popen(
            [sys.executable, __file__, *words, "--place", address, str(processes), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        said = [process.communicate(timeout=1800)[0] for process in begun]
    finally:
        for process in begun:
            process.kill()
    if any(process.returncode for process in begun):
        sys.exit(f"devices.py: a process of {' '.join(words)} failed")
    return json.loads(said[0].splitlines()[-1])


def main() -> None:
    """Measures, shows and saves."""
    line = parser(__doc__, repeats=5)
    line.add_argument("--preset", default="full", choices=list(PRESETS))
    line.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8], help="of devices")
    line.add_argument("--swarms", type=int, default=16, help="on each device")
    line.add_argument("--iterations", type=int, default=20, help="in a measurement")
    line.add_argument("--place", nargs=3, help="of one that measures: address, processes, which")
    arguments = line.parse_args()
    if arguments.place:
        address, count, number = arguments.place
        if int(count) > 1:
            join(address, int(count), int(number))
        else:
            parse(line)
        given = arguments.preset, arguments.swarms, arguments.iterations, arguments.repeats
        row = train(*given)
        if is_first():
            print(json.dumps(row))
        return
    told = ("preset", "swarms", "iterations", "repeats")
    words = [word for name in told for word in (f"--{name}", str(getattr(arguments, name)))]
    rows = [run([*words, "--devices", str(count)], 1) for count in arguments.counts]
    rows.append(run(words, 2))
    alone = rows[0]["env_steps_per_second"]
    show(
        f"Training {arguments.preset}, {arguments.swarms} swarms on each device",
        ("devices", "processes", "swarms", "env steps/s", "of the first's"),
        [
            (r["devices"], r["processes"], r["swarms"], r["env_steps_per_second"],
             f"{r['env_steps_per_second'] / alone:.2f}")
            for r in rows
        ],
    )  # fmt: skip
    save("devices", rows, arguments.out)


if __name__ == "__main__":
    main()
