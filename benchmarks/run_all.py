"""Runs benchmarks of speed one after the other; a failing one does not stop the rest.

`short` takes the scripts' own defaults; `long` sweeps further, over all presets and more seeds. The
exit code is 1 when any failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
LONG = {
    "environment": "--swarms 1 4 16 64 256 1024 4096 16384 --repeats 5",
    "training": "--swarms 16 64 256 1024 --drones 5 20 50 --repeats 5",
    "roofline": "--repeats 10",
    "hot_paths": "",
    "scaling": "--drones 5 10 20 50 100 --city 1 2.5 5 10 20 --swarms 1 16 64 256 1024 "
    "--seeds 1 2 4 8 --repeats 5",
    "rivals": "--algorithms qmix vdn --repeats 5 --seconds 3 --env-steps 300000",
    "time_to_criteria": "--presets quick full scale20 --modes online replay --seeds 5",
}
"""The scripts in their order, quick ones first, with the options of the long budget."""


def main() -> int:
    """Runs them all; returns the exit code."""
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--budget", choices=["short", "long"], default="short")
    line.add_argument("--only", nargs="+", default=list(LONG), choices=list(LONG))
    line.add_argument("--out", type=Path, help="folder of the result files")
    line.add_argument("--fed-marl", type=Path, help="checkout of Fed-MARL, for rivals.py")
    line.add_argument("--jaxmarl", type=Path, help="checkout of JaxMARL, for rivals.py")
    arguments = line.parse_args()
    outcomes = []
    for name in arguments.only:
        command = [sys.executable, str(HERE / f"{name}.py")]
        command += LONG[name].split() if arguments.budget == "long" else []
        command += ["--out", str(arguments.out)] if arguments.out else []
        if name == "rivals":
            for option in ("fed_marl", "jaxmarl"):
                if path := getattr(arguments, option):
                    command += [f"--{option.replace('_', '-')}", str(path)]
        print(f"== {' '.join(command[1:])}", flush=True)
        started = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        outcomes.append((name, code, time.perf_counter() - started))
    for name, code, seconds in outcomes:
        print(f"{name}: {'ok' if code == 0 else f'failed with code {code}'} in {seconds:.0f} s")
    return int(any(code for _, code, _ in outcomes))


if __name__ == "__main__":
    sys.exit(main())
