"""What every benchmark shares: timing, the description of the machine, tables and result files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxqmix import provenance
from jaxqmix.compilation import jit
from jaxqmix.config import ConfigError, RunConfig
from jaxqmix.distributed import use_all_cores
from jaxqmix.env.mission import METRICS
from jaxqmix.evaluation import t_interval
from jaxqmix.runner import Callback

RESULTS = Path(__file__).parent / "results"
IN_A_ROW = 3
"""Evaluations in a row that must meet the criteria before they count as reached."""
COLOURS = ("#1f6f8b", "#d1495b", "#e9a23b", "#5b8c5a", "#6b5b95", "#444444")


def parser(description: str | None, repeats: int | None = None) -> argparse.ArgumentParser:
    """A command line with the options that benchmarks have in common."""
    line = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if repeats is not None:
        text = "measurements behind each median"
        line.add_argument("--repeats", type=int, default=repeats, help=text)
    line.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    line.add_argument("--devices", type=int, help="of a CPU; one per core by default")
    return line


def parse(line: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; also makes CPU cores devices, so call it before JAX computes anything."""
    arguments = line.parse_args()
    sys.excepthook = in_one_line
    if arguments.devices:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    use_all_cores()
    return arguments


def in_one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """How Python shows an error that ends a benchmark: settings that are not allowed in a line."""
    if issubclass(kind, ConfigError):
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    values = list(values)
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def over_seeds(metrics: dict[str, Sequence[float]]) -> dict[str, Any]:
    """The mean over seeds, and `METRIC_ci95: [low, high]` by Student's t where there are
    several, of each metric [seeds]."""
    rows: dict[str, Any] = {"seeds": min(map(len, metrics.values()))}
    for name, values in metrics.items():
        mean, half = t_interval(values)
        rows[name] = mean
        if len(values) > 1:
            rows[f"{name}_ci95"] = [mean - half, mean + half]
    return rows


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of one call, until its results are there."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def measure(call: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Median, lowest and highest seconds of calls after a first one, which may compile."""
    first = seconds_of(call)
    return {"first_call": first, **summary(seconds_of(call) for _ in range(repeats))}


def per_second(work: float, seconds: dict[str, float]) -> dict[str, float]:
    """Work per second, from the spread of the seconds that it took."""
    return {
        "median": work / seconds["median"],
        "lowest": work / seconds["highest"],
        "highest": work / seconds["lowest"],
    }


def rate(call: Callable[[], Any], work: float, seconds: float) -> float:
    """Work per second of calls repeated for at least so many seconds."""
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        jax.block_until_ready(call())
        calls += 1
    return calls * work / elapsed


def versus(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> dict[str, dict[str, float]]:
    """Measures two rivals in turn, so that a busy moment of the machine falls on both.

    Args:
      ours: measures once and returns work per second.
      theirs: likewise.
      rounds: how often; one more at the start is thrown away.

    Returns:
      Spreads of ours, of theirs, and of how many times faster ours was in a round.
    """
    pairs = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return {
        "ours": summary(mine for mine, _ in pairs),
        "theirs": summary(other for _, other in pairs),
        "times": summary(mine / other for mine, other in pairs),
    }


def compile_program(
    function: Callable, *arguments: Any, **options: Any
) -> tuple[Callable, dict[str, float]]:
    """Compiles for arguments; the function may be compiled by `jaxqmix.compilation.jit` already.

    Returns:
      The program, the seconds of its compilation, and the bytes that it needs on each device.
    """
    started = time.perf_counter()
    jitted = function if hasattr(function, "lower") else jit(function, **options)
    program = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    needs = memory.argument_size_in_bytes + memory.output_size_in_bytes
    needs += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return program, {"compile_seconds": seconds, "bytes_per_device": needs}


class CompileClock:
    """Counts the seconds in which JAX traces, lowers or compiles, from when it is made.

    Tracings nest, so the spans are joined before they are added up.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self.spans.append((now - duration, now))

    @property
    def seconds(self) -> float:
        """So far."""
        total, reached = 0.0, 0.0
        for start, end in sorted(self.spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total


class Stopwatch(Callback):
    """Notes when each evaluation of a run came, and what it found."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.evaluations: list[dict[str, Any]] = []

    @property
    def seconds(self) -> float:
        """Since it was made, compilation included."""
        return time.perf_counter() - self.started

    def on_evaluation(self, report: dict[str, Any]) -> None:
        """Keeps the evaluation with the clock."""
        kept = {name: report[name] for name in ("env_steps", "final", *METRICS)}
        kept["seconds"] = self.seconds
        self.evaluations.append(kept | {"met": all(report["success"].values())})


def periodic(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those while a run trains; the final one flies other cities."""
    return [evaluation for evaluation in evaluations if not evaluation["final"]]


def good_enough(evaluations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first periodic evaluation that ends `IN_A_ROW` of them that meet the criteria."""
    row = 0
    for evaluation in periodic(evaluations):
        row = row + 1 if evaluation["met"] else 0
        if row == IN_A_ROW:
            return evaluation
    return None


def with_settings(config: RunConfig, section: str, **changes: Any) -> RunConfig:
    """The run with other settings in a section."""
    part = dataclasses.replace(getattr(config, section), **changes)
    return dataclasses.replace(config, **{section: part})


def with_env(config: RunConfig, **changes: Any) -> RunConfig:
    """The run with other settings of its world."""
    return with_settings(config, "env", **changes)


def with_training(config: RunConfig, **changes: Any) -> RunConfig:
    """The run with other training settings."""
    return with_settings(config, "training", **changes)


def chained(step: Callable[[Any], Any], state: Any) -> Callable[[], Any]:
    """Calls `step` again and again, each time on what it returned (its argument is donated)."""

    def call() -> Any:
        nonlocal state
        state = step(state)
        return state

    return call


def machine() -> dict[str, Any]:
    """Device, cores, versions, commit, day and the command."""
    # Where somebody's folders lie is nobody else's business.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return provenance.machine() | {
        "compilation_cache": bool(jax.config.jax_compilation_cache_dir),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
    }


def save(
    name: str, results: Any, folder: Path = RESULTS, found: dict[str, Any] | None = None
) -> Path:
    """Writes FOLDER/NAME.json with the machine (or what another process found) beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"machine": found or machine(), "results": results}, indent=2)
    # A list of numbers is one line.
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    path.write_text(text + "\n")
    print(f"wrote {path}")
    return path


def figure(panels: int, width: float = 5.5) -> tuple[Figure, list[Any]]:
    """A figure with panels side by side."""
    drawn = Figure(figsize=(width * panels, 4.2), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = list(drawn.subplots(1, panels, squeeze=False)[0])
    for panel in axes:
        panel.grid(alpha=0.25)
    return drawn, axes


def save_figure(name: str, drawn: Figure, folder: Path = RESULTS) -> Path:
    """Writes FOLDER/NAME.png, with the device as its heading."""
    folder.mkdir(parents=True, exist_ok=True)
    found = machine()
    cpu = f"{found['processor']}, {found['cores']} core{'s' * (found['cores'] > 1)}"
    heading = cpu if found["backend"] == "cpu" else found["device"]
    drawn.suptitle(heading, fontsize=9, color="#666666")
    path = folder / f"{name}.png"
    drawn.savefig(path, dpi=110)
    print(f"wrote {path}")
    return path


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table; numbers are rounded to three figures, thousands are separated."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else brief(cell) for cell in row))
    console = Console()
    # A file or a pipe has no width: room for every column.
    (console if console.is_terminal else Console(width=130)).print(table)


def brief(value: float | None) -> str:
    """A number for a table."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{float(f'{value:.3g}') if isinstance(value, float) else value:,.0f}"
    return f"{value:.3g}"


def kept_rows(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that the file holds; ends the program when they are of another study."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())["results"]
    for name, value in about.items():
        if before.get(name) != value:
            sys.exit(f"{path} holds a study with another {name}: give another --name or --out")
    return before["rows"]
