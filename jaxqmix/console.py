"""What a person sees in the terminal: progress, evaluations and the verdict."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from jaxqmix.comparison import best_planner, criteria, planner_reports, verdict
from jaxqmix.config import COVERAGE_SUCCESS, EnvConfig, RunConfig, from_dict
from jaxqmix.evaluation import t_interval
from jaxqmix.folders import Report
from jaxqmix.metrics import SWEEP, flat_settings, runs_in
from jaxqmix.render.curves import Record, by_settings, has_numbers, is_number, load_runs
from jaxqmix.runner import Callback
from jaxqmix.training import REPORTS
from jaxqmix.types import Episode

COMMON = "evaluation.final_episodes"
LOGGED = REPORTS // 10
"""In a pipe or a log, where no bar can move, one report in so many is printed."""
ROWS = (
    ("coverage", "coverage", "{:.1%}"),
    ("collision_rate", "collision rate", "{:.3%}"),
    ("collided_drones", "collided drones", "{:.2%}"),
    ("violation_rate", "violation rate", "{:.3%}"),
    ("return", "return", "{:.3f}"),
    ("mission_reward", "mission reward", "{:.3f}"),
    ("t90", "t90 (env steps)", "{:.1f}"),
    ("t90_over_limit", "t90 / limit", "{:.2f}"),
    ("mission_success", "completed", "{:.1%}"),
)
LEARNT = (
    ("return", "return", "{:.2f}"),
    ("coverage", "coverage", "{:.0%}"),
    ("collision_rate", "collisions", "{:.2%}"),
    ("violation_rate", "violations", "{:.2%}"),
)
"""Of a training report, in lines."""
COLUMNS = (
    ("env_steps", "env steps", "{:,}"),
    ("coverage", "coverage", "{:.1%}"),
    ("t90", "t90", "{:.1f}"),
    ("return", "return", "{:.3f}"),
    ("mission_success", "completed", "{:.0%}"),
    ("collision_rate", "collisions", "{:.3%}"),
)
"""The table that grows by a row at each evaluation: metric, header, format."""
COLOURS = {"good": "green", "fair": "yellow", "bad": "red"}


class Bar(Progress):
    """A progress bar with lines of metrics below, readable from 80 columns on."""

    lines: tuple[str, ...] = ()
    activity: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, the metrics, and what takes time now."""
        yield self.make_tasks_table(self.tasks)
        yield from self.lines
        if self.activity:
            yield self.activity


class Console(Callback):
    """Shows a run in the terminal."""

    def __init__(self, out: Path, several: str | None = None):
        """Shows the run in `out`, or the runs below it, with words for which they are."""
        self._out, self._several = out, several
        self._terminal = Terminal(highlight=False)
        self._bar: Bar | None = None
        self._config: RunConfig | None = None
        self._reports = self._evaluations = 0

    def on_start(self, config: RunConfig, step: int, memory: dict[str, int]) -> None:
        """Says what is about to run, and shows the bar."""
        self._config = config
        training = config.training
        self._say(
            f"[bold]{escape(config.preset)}[/bold]: {escape(world_words(config))}, "
            f"horizon {config.env.horizon}; {config.learner.mixer}, {training.mode}, "
            f"{training.swarms:,} swarms (scale {config.scale}), {config.budget:,} env steps, "
            f"{escape(self._several or f'seed {training.seed}')}"
        )
        parts = [f"{name} {size / 1e6:,.1f} MB" for name, size in memory.items() if size]
        self._say(f"memory: {', '.join(parts)}")
        if step:
            self._say(f"resuming at {step * config.iteration_steps:,} env steps")
        self._bar = Bar(
            SpinnerColumn(),
            BarColumn(bar_width=40),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._terminal,
            disable=not self._terminal.is_interactive,
        )
        self._bar.add_task("train", total=config.iterations, completed=step)
        self._bar.start()

    def on_compiling(self, programs: Sequence[str]) -> None:
        """Says what the compiler works at."""
        self.on_activity(compiling_words(programs))

    def on_compiled(self, seconds: float, programs: int, cached: int) -> None:
        """Says how long it took, and what the cache gave."""
        self._say(
            f"compiled {programs} programs in {seconds:.1f} s, {cached} of them kept from before"
        )

    def on_advance(self, step: int) -> None:
        """Moves the bar."""
        assert self._bar is not None
        self._bar.update(self._bar.task_ids[0], completed=step)

    def on_training_report(self, report: Report) -> None:
        """Shows the metrics below the bar, or some of them as lines of a log."""
        assert self._bar is not None
        self._bar.lines, self._bar.activity = metric_lines(report), ""
        self._reports += 1
        if not self._terminal.is_interactive and self._reports % LOGGED == 0:
            self._say("   ".join(metric_lines(report)))

    def on_activity(self, what: str) -> None:
        """Says what takes time: below the bar, or in a line of its own once the bar is gone."""
        if self._bar is None:
            self._say(what)
        else:
            self._bar.activity = what

    def on_stopping(self) -> None:
        """Says that the wish to stop was heard."""
        if self._bar is not None:
            self._bar.activity = "finishing what is begun; Ctrl-C again stops at once"

    def _say(self, text: str) -> None:
        """Prints a line; a log keeps it whole."""
        self._terminal.print(text, soft_wrap=not self._terminal.is_interactive)

    def on_evaluation(self, report: Report) -> None:
        """Prints an evaluation, or the final table and verdict."""
        if report["final"]:
            self._close()
            if "seeds" in report:  # A table follows when all is finished.
                return
            assert self._config is not None
            known = known_planners(self._config)
            show_report(report | {"policy": self._config.learner.mixer}, self._config, known)
            return
        if not self._evaluations:
            means = f", means of {len(report['seeds'])} runs" if "seeds" in report else ""
            self._say(f"evaluations, each on the same {report['episodes']} unseen cities{means}:")
            self._say(evaluation_header())
        self._evaluations += 1
        self._say(evaluation_row(report))

    def on_finish(self) -> None:
        """Says where everything is, and what to try next."""
        out = escape(self._out.as_posix())
        if self._several is not None:
            show_runs(load_runs([self._out]), {})
            first = runs_in(self._out)[0].relative_to(self._out).as_posix()
            summary = SWEEP if (self._out / SWEEP).is_file() else "seeds.json"
            self._say(
                f"each run is in {out}, as {escape(first)} and so on; curves.png and {summary}, "
                "with means and 95 % intervals, are there too"
            )
            return
        self._say(f"{left_in(self._out)} are in {out}")
        if self._config is not None and self._config.world:
            return
        self._say("next:")
        self._say(f"  jaxqmix render {out} --out swarm.html   watch it fly, in a browser")
        self._say(f"  jaxqmix evaluate {out}   compare it with scripted planners")

    def on_stopped(self, step: int) -> None:
        """Says how to go on."""
        self._close()
        assert self._config is not None
        self._say(
            f"stopped and saved at {step * self._config.iteration_steps:,} env steps; "
            "the same command with --resume continues"
        )

    def on_failure(self) -> None:
        """Takes the bar away before an error is shown."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.activity = ""
            self._bar.stop()
            self._bar = None


def left_in(run: Path) -> str:
    """What a finished run leaves; not every world records an episode."""
    replay = (run / "replay.gif").is_file()
    return f"checkpoints, metrics{', curves.png and replay.gif' if replay else ' and curves.png'}"


def compiling_words(programs: Sequence[str]) -> str:
    """What is being compiled, and how long that takes; nothing when all is."""
    words = f"compiling: {', '.join(programs)}; 10 to 60 s, once for these settings"
    return words if programs else ""


def world_words(config: RunConfig) -> str:
    """What flies where."""
    env = config.env
    if config.world:
        return f"{env.drones} agents in {config.world}"
    return (
        f"{env.drones} drones, {env.city_width / 1000:g} x {env.city_length / 1000:g} km of "
        f"{env.cell_size:g} m cells"
    )


def run_words(
    first: int, seeds: int | None, sweep: Mapping[str, Sequence[Any]] | None = None
) -> str | None:
    """Which runs are trained side by side: values and seeds; None for a single run."""
    if seeds is None and not sweep:
        return None
    words = [f"{name} {', '.join(map(str, values))}" for name, values in (sweep or {}).items()]
    several = (
        f"seeds {first} to {first + (seeds or 1) - 1}" if (seeds or 1) > 1 else f"seed {first}"
    )
    return " x ".join([*words, several])


def metric_lines(report: Report) -> tuple[str, ...]:
    """A training report in lines of less than 80 columns; of several seeds, with the lowest and
    highest of each figure."""
    seeds = report.get("seeds", ())

    def show(name: str, form: str) -> str:
        found = [each[name] for each in seeds if each[name] is not None]
        spread = f" ({form.format(min(found))} to {form.format(max(found))})" if found else ""
        return "-" if report[name] is None else form.format(report[name]) + spread

    times = f"{len(seeds)} x " if seeds else ""
    told = [f"{label} {show(name, form)}" for name, label, form in LEARNT if name in report]
    loss = f"loss {report['loss']:.3g}"
    lines = ([*told[:2], loss], told[2:]) if seeds else ([*told, loss],)
    return (
        f"episode {report['episodes']:,.0f}   env steps {report['env_steps']:,}   "
        f"{times}{report['env_steps_per_second']:,.0f} env steps/s   "
        f"epsilon {report['epsilon']:.2f}",
        *("   ".join(line) for line in lines),
    )


class Lines(Callback):
    """Prints one row per evaluation and nothing else: for notebooks and log files."""

    def __init__(self):
        self._header = evaluation_header()

    def on_evaluation(self, report: Report) -> None:
        """Prints the row."""
        if self._header:
            print(self._header, flush=True)
        self._header = ""
        print(evaluation_row(report), flush=True)


class Notebook(Callback):
    """Shows a bar and a growing table below a notebook's cell; needs no widgets."""

    def __init__(self, out: Path):
        from IPython.display import HTML, display

        self._out, self._html = out, HTML
        self._handle = display(HTML(""), display_id=True)
        self._rows: list[str] = []
        self._done, self._total, self._what, self._shown = 0, 1, "", 0.0

    def on_start(self, config: RunConfig, step: int, memory: dict[str, int]) -> None:
        """Shows the bar."""
        self._config, self._done, self._total = config, step, config.iterations
        self.on_activity("compiling")

    def on_compiling(self, programs: Sequence[str]) -> None:
        """Says what the compiler works at."""
        self.on_activity(compiling_words(programs))

    def on_advance(self, step: int) -> None:
        """Moves the bar, a few times a second at most: every move is sent to the browser."""
        self._done = step
        if time.monotonic() - self._shown > 0.3:
            self._show()

    def on_training_report(self, report: Report) -> None:
        """Shows the metrics of training."""
        self._what = "   ".join(metric_lines(report))

    def on_activity(self, what: str) -> None:
        """Says what takes time."""
        self._what = what
        self._show()

    def on_evaluation(self, report: Report) -> None:
        """Adds a row, or the verdict."""
        if report["final"]:
            self._rows += [evaluation_row(each) for each in report.get("seeds", ())]
        self._rows.append(evaluation_row(report))
        if report["final"]:
            known = known_planners(self._config)
            best = best_planner(known)
            self._rows += [text for _, text in verdict(report, self._config, best)]
        self._show()

    def on_finish(self) -> None:
        """Says where everything is."""
        self._done = self._total
        self.on_activity(f"{left_in(self._out)} are in {self._out}")

    def on_stopped(self, step: int) -> None:
        """Says how to go on."""
        self.on_activity("stopped and saved; jaxqmix.train(..., resume=True) continues")

    def _show(self) -> None:
        self._shown = time.monotonic()
        rows = [evaluation_header(), *self._rows] if self._rows else []
        text = html.escape("\n".join([self._what, *rows]))
        bar = f'<progress style="width: 40em" max="{self._total}" value="{self._done}"></progress>'
        self._handle.update(self._html(f"{bar}<pre>{text}</pre>"))


def callback(out: Path, several: str | None = None) -> Callback:
    """What shows a run, or several, where Python runs: in a notebook or in a terminal."""
    try:
        from IPython import get_ipython

        notebook = type(get_ipython()).__name__ == "ZMQInteractiveShell"
    except ImportError:
        notebook = False
    return Notebook(out) if notebook else Console(out, several)


def evaluation_header() -> str:
    """The header of `evaluation_row`s."""
    return "".join(f"{header:>11}" for _, header, _ in COLUMNS) + "  criteria"


def evaluation_row(report: Report) -> str:
    """An evaluation in one row, and whether its criteria are met, or by how many seeds."""
    cells = [form.format(report[name]) if name in report else "-" for name, _, form in COLUMNS]
    words = "met" if all(report["success"].values()) else "not met"
    if "seeds" in report:
        passed = [all(each["success"].values()) for each in report["seeds"]]
        words = f"met by {sum(passed)} of {len(passed)}"
    return f"{''.join(f'{cell:>11}' for cell in cells)}  {words}"


def known_planners(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Reports of planners over the cities of the final evaluation, where they have flown before."""
    episodes, seed = config.evaluation.final_episodes, config.evaluation.seed
    if config.world:
        return {}
    return planner_reports(config, episodes=episodes, seed=seed, only_known=True)


def show_report(
    report: dict[str, Any], config: RunConfig, planners: dict[str, dict[str, Any]] | None = None
) -> None:
    """Prints a table of an evaluation and the verdict.

    Args:
      report: of the evaluation.
      config: of what was flown.
      planners: reports of planners over the same cities, to compare with.
    """
    best, demands = best_planner(planners or {}), criteria(config.evaluation)
    flown = ", flown to the horizon" if report.get("to_horizon") else ""
    city = config.env.city
    place = f"flights over {Path(city).name}" if city else "unseen cities"
    table = Table(title=escape(f"{report['policy']} on {report['episodes']} {place}{flown}"))
    for header in ("metric", "mean", "95 % interval", "criterion"):
        table.add_column(header, justify="right" if header in ("mean", "95 % interval") else "left")
    if best is not None:
        table.add_column(best["policy"], justify="right")
    for name, label, form in ROWS:
        if name not in report:
            continue
        low, high = (form.format(bound) for bound in report[f"{name}_ci95"])
        met = report["success"].get(name)
        judged = "" if met is None else f"{demands[name]} {'met' if met else 'not met'}"
        row = [label, form.format(report[name]), f"{low} to {high}", judged]
        rival = form.format(best[name]) if best and name in best else ""
        table.add_row(*row, *([rival] if best is not None else []))
    terminal = Terminal(highlight=False)
    terminal.print(table)
    for name, value in report.get("changed", {}).items():
        terminal.print(f"changed: {escape(name)} = {escape(str(value))}")
    for kind, text in verdict(report, config, best):
        terminal.print(f"[{COLOURS[kind]}]{escape(text)}[/]")


def show_runs(runs: Sequence[Record], planners: dict[str, dict[str, Any]]) -> None:
    """Prints evaluations of runs, means over seeds, and evaluations of planners, one a row."""
    forms = {
        "coverage": "{:.1%}", "t90": "{:.1f}", "t90_over_limit": "{:.2f}", "return": "{:.3f}",
        "mission_reward": "{:.3f}", "collision_rate": "{:.3%}", "mission_success": "{:.0%}",
    }  # fmt: skip
    headers = ("coverage", "t90 (95 %)", "t90 / limit", "return", "mission reward", "collisions",
               "done", "criteria")  # fmt: skip
    table = Table(title="final evaluations" + ("" if all(r.final for r in runs) else " (* so far)"))
    table.add_column("run", overflow="fold", min_width=12)
    for header in headers:
        table.add_column(header, justify="right")

    def add(name: str, report: dict[str, Any] | None) -> None:
        report = report or {}
        cells = {
            name: form.format(report[name]) if is_number(report.get(name)) else "-"
            for name, form in forms.items()
        }
        ends = report.get("t90_ci95")
        if isinstance(ends, list | tuple) and len(ends) == 2 and all(map(is_number, ends)):
            low, high = ends
            cells["t90"] += f" ± {(high - low) / 2:.1f}"
        passed = bool(report) and all(report["success"].values())
        table.add_row(Text(name), *cells.values(), "met" if passed else "not met")

    kinds = by_settings(runs)
    for label, same in kinds.items():
        for run in same:
            add(run.name + ("" if run.final else " *"), run.evaluation)
        # Reports of earlier versions, and of other worlds, have not all of them.
        columns = [
            name for name in forms
            if all(name in (run.final or {}) for run in same)
        ]  # fmt: skip
        finals = [run.final for run in same if run.final and has_numbers(run.final, columns)]
        if len(same) > 1 and len(finals) == len(same):
            means = {name: t_interval([final[name] for final in finals]) for name in columns}
            successes = {str(i): all(final["success"].values()) for i, final in enumerate(finals)}
            which = label if len(kinds) > 1 else f"{len(same)} seeds"
            add(f"mean of {which}", {n: m for n, (m, _) in means.items()} | {"success": successes})
            halves = [f"± {forms[n].format(means[n][1])}" if n in means else "-" for n in forms]
            table.add_row("95 % interval", *halves, "")
    for name, report in planners.items():
        add(name, report)
    terminal = Terminal(highlight=False)
    terminal.print(table)
    for note in notes(runs, planners):
        terminal.print(f"note: {escape(note)}")


def notes(runs: Sequence[Record], planners: dict[str, dict[str, Any]]) -> list[str]:
    """What to know before rows are compared: settings of the world that differ, and cities."""
    found = []
    flat = [flat_settings(from_dict(run.settings)) for run in runs]
    for name, value in flat[0].items() if flat else ():
        values = [each.get(name) for each in flat]
        world = name.startswith(("env.", "domain.")) or name in ("evaluation.seed", COMMON)
        if world and any(other != value for other in values):
            found.append(f"runs differ in {name}: {', '.join(map(str, dict.fromkeys(values)))}")
    flown = [run.evaluation.get("episodes") for run in runs if run.evaluation]
    counts = {count for count in flown if count is not None}
    counts |= {report["episodes"] for report in planners.values()}
    if len(counts) > 1:
        found.append(f"rows are of different cities: {', '.join(map(str, sorted(counts)))} of them")
    if planners and found:
        found.append(f"planners fly as {runs[0].name} does")
    return found


def outcome(name: str, episode: Episode, config: EnvConfig) -> str:
    """A recorded episode in one line."""
    coverage, length = np.asarray(episode.coverage), int(episode.length)
    events = episode.events
    reached = coverage >= COVERAGE_SUCCESS
    when = f"90 % after {np.argmax(reached)} env steps" if reached.any() else "less than 90 %"
    hit = int((np.asarray(events.conflict) | np.asarray(events.building_hit)).sum())
    blocked = int(np.asarray(events.violation).sum())
    return (
        f"{name}: sees {when}, {coverage[length]:.1%} in the end, after {length} of "
        f"{config.horizon}; {hit} drone steps in collision, {blocked} against a no-fly zone"
    )


@contextmanager
def frames() -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the frames of an animation."""
    with Progress(BarColumn(), MofNCompleteColumn(), TextColumn("frames"), transient=True) as bar:
        task = bar.add_task("frames", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
