"""Does a run survive what breaks machines? Kills, signals, damage, full disks, clocks, rivals.

Every round trains a tiny run, harms it in one way, resumes it with `--resume` until it ends, and
compares it with a run that nobody disturbed: all of its final checkpoint (by the checksums beside
it) and, unless files were damaged, every figure of metrics.jsonl but speeds. Modes online and
replay, networks mlp and gru, in turn. Every round is written down when it ends, and `--resume`
goes on after the last.

  kill     SIGKILL at a random instant from the start on, again and again
  saving   SIGKILL while a checkpoint is being written
  term     SIGTERM, SIGHUP or Ctrl-C at a random instant; Ctrl-C twice
  damage   one random file of the stopped run flipped, zeroed, cut short or removed
  full     no file may grow beyond a random size, as on a full disk or with a quota
  clock    the clock of the wall jumps by hours, forwards and back
  rival    a second process resumes the run while it trains

Besides: random words on the command line, memory over many iterations and evaluations, and extreme
worlds. POSIX only: rounds are forked off this process, which never starts JAX itself; compiled
programs are kept in a file, for tracing would take most of a round.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from common import in_one_line, machine, parser, save, show

from jaxqmix import checkpoints, cli, compilation, runner
from jaxqmix.commands import evaluate, federate, world
from jaxqmix.commands import train as train_command
from jaxqmix.config import (
    CheckpointConfig,
    ConfigError,
    EvaluationConfig,
    RunConfig,
    shown,
    to_dict,
)
from jaxqmix.metrics import read
from jaxqmix.presets import PRESETS
from jaxqmix.render import animation, curves  # noqa: F401  (loaded once, for all)
from jaxqmix.validate import MISSION

PATIENCE = 600
"""Seconds after which a process counts as hung, on a busy machine too."""
PARTS = ("fuzzing", "memory", "worlds")
WAYS = ("kill", "saving", "term", "damage", "full", "clock", "rival")
TINY = dataclasses.replace(
    MISSION,
    preset="quick",
    training=dataclasses.replace(MISSION.training, env_steps=1600),
    evaluation=EvaluationConfig(every_episodes=40, episodes=2, final_episodes=2, symmetric=False),
    checkpoint=CheckpointConfig(every_episodes=10),
)
KINDS = {
    f"{mode} {network}": TINY.replace(**{"training.mode": mode, "learner.network": network})
    for mode in ("online", "replay")
    for network in ("mlp", "gru")
}


class Process:
    """A forked child that runs a function, with what it prints in a file."""

    def __init__(self, log: Path, call: Callable[[], Any]):
        self.log, self.code = log, None
        self.number = os.fork()
        if self.number == 0:
            self._run(call)

    def _run(self, call: Callable[[], Any]) -> None:
        code = 1
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            call()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code (negative after a signal), or None while it runs."""
        if self.code is None:
            number, status = os.waitpid(self.number, os.WNOHANG)
            self.code = None if number == 0 else os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> Any:
        """Its exit code; None once `until` holds; "hung" (and killed) after so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (code := self.poll()) is not None:
                return code
            if until():
                return None
            time.sleep(0.01)
        if seconds < PATIENCE:
            return None
        os.kill(self.number, signal.SIGKILL)
        os.waitpid(self.number, 0)
        self.code = "hung"
        return self.code


def keep_programs(file: Path) -> None:
    """Takes the compiled programs and the shapes of a run from a file, which the first run writes:
    all processes run the very same programs, and none but the first traces and compiles."""
    import jax
    from jax.experimental import serialize_executable

    kept = pickle.loads(file.read_bytes()) if file.exists() else {"shapes": {}}
    trace, compile_ahead = jax.eval_shape, runner.compile_ahead

    def shapes_of(function: Callable, *arguments: Any) -> Any:
        name = f"{function.__qualname__} {arguments}"
        if getattr(function, "__module__", None) not in ("jaxqmix.training", "jaxqmix.env.base"):
            return trace(function, *arguments)
        if name not in kept["shapes"]:
            kept["shapes"][name] = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type),
                trace(function, *arguments),
            )
        return kept["shapes"][name]

    def compiled(programs: Any, notice: Callable) -> tuple[dict[str, Callable], dict[str, float]]:
        if "programs" not in kept:
            found, effort = compile_ahead(programs, notice)
            kept["programs"] = {}
            for name, program in found.items():
                data, *trees = serialize_executable.serialize(program)
                # Trees of numbers, for descriptions of trees cannot be pickled.
                trees = [jax.tree.unflatten(tree, range(tree.num_leaves)) for tree in trees]
                kept["programs"][name] = data, trees
            file.write_bytes(pickle.dumps(kept))
            return found, effort
        found = {}
        for name in programs:
            data, trees = kept["programs"][name]
            trees = map(jax.tree.structure, trees)
            found[name] = serialize_executable.deserialize_and_load(data, *trees)
        return found, {"seconds": 0.0, "programs": len(found), "cached": len(found)}

    # Lowering loads LAPACK, which the first weights of a GRU call; nothing else does.
    jax.jit(jax.numpy.linalg.qr).lower(jax.ShapeDtypeStruct((2, 2), "float32"))
    jax.eval_shape, runner.compile_ahead = shapes_of, compiled


def train(
    config: RunConfig,
    run: Path,
    resume: bool,
    harm: Callable[[], Any] = lambda: None,
    log: str = ".log",
) -> Process:
    """`jaxqmix train --config FILE --out RUN`, in a process of its own."""
    file = run.with_suffix(".json")
    file.write_text(json.dumps(to_dict(config)))
    words = ["train", "--config", str(file), "--out", str(run), *(["--resume"] if resume else [])]
    programs = run.with_name(f"{config.training.mode}-{config.learner.network}.programs")

    def call() -> None:
        import jax

        jax.config.update("jax_num_cpu_devices", 1)
        # Compiled quickly: what is compared is the same program, disturbed or not.
        compilation._CPU_OPTIONS["xla_backend_optimization_level"] = 0
        # XLA cannot serialise again what it took from the cache: functions are missing then.
        os.environ["JAXQMIX_CACHE"] = str(programs.with_suffix(".cache"))
        keep_programs(programs)
        harm()
        cli.main(words)

    return Process(run.with_suffix(log), call)


def has_begun(run: Path) -> bool:
    """Whether a run has something to resume."""
    return (run / "config.json").is_file() or any(checkpoints.steps_of(run, "latest"))


def figures(run: Path) -> dict[str, Any] | None:
    """Checksums of every leaf of the final state, and all rows without speeds; None where there is
    no final state."""
    for step in checkpoints.steps_of(run, "final"):
        about = json.loads((run / "checkpoints" / "final" / str(step) / "about.json").read_text())
        rows = [{n: v for n, v in row.items() if "per_second" not in n} for row in read(run)]
        return {"state": about["leaves"]["state"], "rows": rows}
    return None


def last_line(process: Process) -> str:
    """What a process said last."""
    lines = process.log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def has_traceback(process: Process) -> bool:
    """Whether a process showed one, its own or a thread's."""
    return "Traceback" in process.log.read_text(errors="replace")


def harm_file(run: Path, draw: random.Random) -> str:
    """Damages a random file of a run; says what it did."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    path, way = draw.choice(files), draw.choice(["flip", "zero", "cut", "remove", "garbage"])
    data = bytearray(path.read_bytes())
    if way == "remove" or not data:
        path.unlink()
    elif way == "garbage":
        path.write_bytes(draw.randbytes(len(data)))
    elif way == "cut":
        path.write_bytes(data[: draw.randrange(len(data))])
    else:
        place = draw.randrange(len(data))
        if way == "flip":
            data[place] ^= 1 << draw.randrange(8)
        else:
            data[place : place + 4096] = bytes(len(data[place : place + 4096]))
        path.write_bytes(data)
    return f"{way} {path.relative_to(run)}"


def limit_files(size: int) -> None:
    """No file of this process grows beyond so many bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def shake_clock(seed: int) -> None:
    """The wall's clock jumps, and always another way."""
    now, draw = time.time, random.Random(seed)
    time.time = lambda: now() + draw.uniform(-1e5, 1e5)


def disturb(way: str, process: Process, run: Path, draw: random.Random, seconds: float) -> Any:
    """Harms a running process; returns its exit code if it ended by itself."""
    code = process.wait(seconds=draw.uniform(0, seconds) * (0.6 if way == "saving" else 1.0))
    if code is None and way == "saving":
        code = process.wait(until=lambda: any((run / "checkpoints").glob("*/.*.part")))
    if code is not None:
        return code
    if way in ("kill", "saving"):
        numbers = [signal.SIGKILL]
    elif draw.random() < 0.3:
        numbers = [signal.SIGINT, signal.SIGINT]
    else:
        numbers = [draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])]
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.number, number)
        time.sleep(0.05)
    return process.wait()


class Round:
    """One run that is harmed, and what came of it."""

    def __init__(self, way: str, config: RunConfig, folder: Path, seed: int, seconds: float):
        self.way, self.config, self.run = way, config, folder / f"round-{seed}"
        self.draw, self.seconds = random.Random(seed), seconds
        self.harms, self.notes = 0, []

    def start(self, resume: bool, harm: Callable[[], Any] = lambda: None) -> Process:
        """Starts or resumes the run."""
        return train(self.config, self.run, resume, harm)

    def check(self, process: Process, code: Any) -> None:
        """Notes what must not be: a hang, a traceback, an error without its line."""
        if code == "hung":
            self.notes.append("hung")
        if has_traceback(process) and code not in (-signal.SIGKILL, 130, -signal.SIGINT):
            self.notes.append(f"traceback: {last_line(process)[:150]}")
        if code == 2 and not last_line(process).startswith("jaxqmix: "):
            self.notes.append(f"no line: {last_line(process)[:150]}")

    def harm(self) -> None:
        """The first attempts, each harmed in the round's way."""
        draw, way = self.draw, self.way
        for _ in range(draw.randrange(1, 4) if way in ("kill", "saving", "term") else 1):
            resume = has_begun(self.run)
            if way == "full":
                size = round(10 ** draw.uniform(3, 6))
                process = self.start(resume, lambda size=size: limit_files(size))
                code = process.wait()
            elif way == "clock":
                process = self.start(resume, lambda: shake_clock(draw.randrange(1000)))
                code = process.wait()
            elif way == "rival":
                process = self.start(resume)
                if (code := process.wait(until=lambda: has_begun(self.run))) is None:
                    self.rival()
                    code = process.wait()
            else:
                process = self.start(resume)
                code = disturb("term" if way == "damage" else way, process, self.run, draw,
                               self.seconds)  # fmt: skip
                if way == "damage" and has_begun(self.run):
                    self.notes.append(harm_file(self.run, draw))
            self.harms += code != 0 or way in ("clock", "rival", "damage")
            self.check(process, code)
            if code == 0 and figures(self.run) is not None:
                return

    def rival(self) -> None:
        """A second process in the same folder, which must be refused."""
        rival = train(self.config, self.run, resume=True, log=".rival.log")
        code = rival.wait()
        if not (code == 2 and "is writing there" in last_line(rival)) and code != 0:
            self.notes.append(f"rival: {code} {last_line(rival)[:150]}")

    def end(self, expected: dict[str, Any]) -> str:
        """Resumes the run until it ends; `survived`, `lost` or `differing`."""
        code, process = None, None
        for _ in range(3):
            process = self.start(has_begun(self.run))
            code = process.wait()
            self.check(process, code)
            if code == 0:
                break
        if code != 0:
            self.notes.append(f"{code}: {last_line(process)[:200]}")
            return "lost"
        found = figures(self.run) or {}
        different = [name for name in expected if found.get(name) != expected[name]]
        if self.way == "damage" and different == ["rows"]:
            return "survived"  # rows that were damaged are passed over
        self.notes.extend(f"other {name}" for name in different)
        return "differing" if different else "survived"


def undisturbed(config: RunConfig, run: Path) -> tuple[dict[str, Any], float]:
    """The figures of a run that nobody disturbs, and its seconds once programs are compiled."""
    found = []
    for name in ("first", "second"):
        place, begun = run.with_name(f"{run.name}-{name}"), time.monotonic()
        process = train(config, place, resume=False)
        if code := process.wait(seconds=10 * PATIENCE):
            sys.exit(f"an undisturbed run ended with {code}: {last_line(process)}")
        found.append(figures(place))
        seconds = time.monotonic() - begun
    if found[0] != found[1]:
        sys.exit("two undisturbed runs differ")
    print(f"undisturbed {run.name}: {seconds:.1f} s", flush=True)
    return found[0], seconds


def rounds(
    numbers: range, seconds: float, kinds: list[str], folder: Path, note: Callable[[dict], None]
) -> None:
    """Rounds of runs of some kinds, none begun after so many seconds; `note` hears of each."""
    started = time.monotonic()
    known: dict[str, tuple[dict[str, Any], float]] = {}
    for number in numbers:
        if time.monotonic() - started > seconds:
            break
        way, name = WAYS[number % len(WAYS)], kinds[number // len(WAYS) % len(kinds)]
        if name not in known:
            known[name] = undisturbed(KINDS[name], folder / name.replace(" ", "-"))
        expected, pace = known[name]
        begun = time.monotonic()
        each = Round(way, KINDS[name], folder, number, pace)
        each.harm()
        outcome = each.end(expected)
        took = round(time.monotonic() - begun, 1)
        row = {"way": way, "kind": name, "harms": each.harms, "outcome": outcome, "seconds": took}
        note(row | {"notes": each.notes})
        print(f"{number + 1}: {way}, {name}: {outcome} in {took} s {'; '.join(each.notes)}",
              flush=True)  # fmt: skip
        if outcome == "survived":
            for place in folder.glob(f"round-{number}*"):
                shutil.rmtree(place) if place.is_dir() else place.unlink()


def summary_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by way, and whatever was noted."""
    table = {}
    for way in WAYS:
        rows = [row for row in found if row["way"] == way]
        outcomes = collections.Counter(row["outcome"] for row in rows)
        table[way] = {
            "tried": len(rows),
            "harms": sum(row["harms"] for row in rows),
            **{name: outcomes[name] for name in ("survived", "lost", "differing")},
            "hung": sum("hung" in row["notes"] for row in rows),
            "tracebacks": sum(any("traceback" in note for note in row["notes"]) for row in rows),
        }
    bad = [row for row in found if row["outcome"] != "survived"
           or any(note.startswith(("hung", "traceback", "no line", "rival"))
                  for note in row["notes"])]  # fmt: skip
    return {"rounds": len(found), "by_way": table, "noted": bad}


WORDS = [
    *cli.COMMANDS,
    *PRESETS,
    *("--env.drones", "--env.city-width", "--learner.gamma", "--domain.wind-speed", "--seed"),
    "--seeds",
    *("--out", "--resume", "--mode", "--config", "--json", "--planner", "--episodes", "--help"),
    *("--env-steps", "--learner.double-q", "--city", "--scale", "--compare", "--trajectories"),
    *("-", "--", "=", "--=", "-h", "0", "1", "-1", "1e3", "nan", "inf", "9" * 401, "True", "x"),
    *("--env.drones=3", "--out=", "--seed=-1", "\x00", "\n", "\udcff", "../..", "é", "[bold]"),
]
"""Words of command lines, likely and not."""


def try_words(words: list[str]) -> None:
    """Runs a command up to where it would begin to work; raises where it shows no single line."""

    def work(*_: Any, **__: Any) -> None:
        raise ConfigError("it would work")

    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Each module that holds a name by itself: one imported meanwhile would keep the stand-in.
        for module in (train_command, evaluate, world, federate):
            for name in {"prepare_jax", "find_policy", "find_scale"} & set(vars(module)):
                stack.enter_context(mock.patch.object(module, name, work))
        stack.enter_context(mock.patch("jaxqmix.runner.train", lambda *_: None))
        idle = {name: ("", lambda _: 0) for name in ("demo", "validate")}
        stack.enter_context(mock.patch.dict(cli.COMMANDS, idle))
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            cli.run(words)
        except (ConfigError, OSError) as refusal:
            # As `cli.main` shows them; a name may be too long for the file system.
            text = str(refusal) if isinstance(refusal, ConfigError) else shown(refusal)
            if not re.fullmatch(r"[^\x00-\x1f]{1,1000}", text):
                raise AssertionError(f"not one line: {text!r}") from None
        except SystemExit as stopped:
            if stopped.code:
                raise AssertionError(f"code {stopped.code}") from None


def fuzz(cases: int) -> dict[str, Any]:
    """Command lines and config files by chance, drawn by hypothesis; in this process, no JAX."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from jaxqmix.config import from_dict

    words = st.sampled_from(WORDS) | st.text(max_size=6)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["env", "domain", "reward", "learner", "drones", "training", "seed"])
            | st.text(max_size=3), inner, max_size=4),
        max_leaves=8,
    )  # fmt: skip
    tried = collections.Counter()
    rules = settings(
        max_examples=cases, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @rules
    @given(st.lists(words, max_size=7))
    def command_lines(line: list[str]) -> None:
        tried["command lines"] += 1
        try_words(line)

    @rules
    @given(values)
    def config_files(data: Any) -> None:
        tried["config files"] += 1
        with contextlib.suppress(ConfigError):
            from_dict(data)

    started = time.monotonic()
    command_lines()
    config_files()
    return dict(tried) | {"failed": 0, "seconds": time.monotonic() - started}


def resident() -> float:
    """Memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def ask(folder: Path, call: Callable[[], Any]) -> Any:
    """What a function returns, from a process of its own."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    process = Process(folder / "asked.log", lambda: answer.write_text(json.dumps(call())))
    code = process.wait(seconds=10 * PATIENCE)
    return json.loads(answer.read_text()) if code == 0 else {"failed": code}


def memory(config: RunConfig, iterations: int, evaluations: int) -> dict[str, float]:
    """Growth in MB over many iterations, and over many evaluations, after the first tenth."""
    import jax

    from jaxqmix.evaluation import evaluator
    from jaxqmix.training import make_trainer

    trainer = make_trainer(config)
    state = trainer.init(0)
    fly = evaluator(trainer.env, trainer.policy, 2)
    figures = {}
    for number in range(iterations):
        state, metrics = trainer.iterate(state, 1)
        jax.device_get(metrics)
        if number == iterations // 10:
            figures["iterations_mb"] = -resident()
    figures["iterations_mb"] += resident()
    for number in range(evaluations):
        fly(state.learner.ema["agent"], 0, 2)
        if number == evaluations // 10:
            figures["evaluations_mb"] = -resident()
    figures["evaluations_mb"] += resident()
    return figures | {"iterations": iterations, "evaluations": evaluations}


def extreme_world(seed: int) -> dict[str, Any]:
    """Settings by chance, each at one of its ends or near."""
    draw = random.Random(seed)
    width, length, cell = draw.choice([(80.0, 200.0, 20.0), (400.0, 160.0, 10.0)] * 2
                                      + [(2000.0, 1000.0, 25.0)])  # fmt: skip
    most = 100 if width == 2000 else 2
    return {
        "env.city_width": width,
        "env.city_length": length,
        "env.cell_size": cell,
        "env.drones": draw.choice([1, most]),
        "env.no_fly_zones": draw.choice([0, 16]),
        "env.horizon": draw.choice([1, 5]),
        "env.patch": draw.choice([1, 31]),
        "env.neighbours": draw.choice([0, 99 if width < 2000 else 3]),
        "env.sensing": draw.choice(["footprint", "probabilistic"]),
        "learner.network": draw.choice(["mlp", "gru"]),
        "learner.mixer": draw.choice(["qmix", "qplex", "vdn", "iql"]),
        "training.mode": draw.choice(["online", "replay"]),
        "training.rollout": 1,
        "domain.visibility": draw.choice([0.05, 1.0]),
        "domain.wind_speed": draw.choice([0.0, 30.0]),
        "domain.packet_loss": draw.choice([0.0, 1.0]),
    }


def fly_world(settings: dict[str, Any]) -> bool:
    """Trains two iterations and evaluates; whether all figures are finite."""
    import jax
    import numpy as np

    from jaxqmix.evaluation import evaluator
    from jaxqmix.training import make_trainer

    compilation._CPU_OPTIONS["xla_backend_optimization_level"] = 0
    trainer = make_trainer(MISSION.replace(**settings))
    state, metrics = trainer.iterate(trainer.init(0), 2)
    figures, _ = evaluator(trainer.env, trainer.policy, 2)(state.learner.ema["agent"], 0, 2)
    leaves = jax.device_get(jax.tree.leaves((state.learner, metrics, figures)))
    return bool(all(np.isfinite(np.asarray(leaf, float)).all() for leaf in leaves))


def main() -> None:
    """Runs what is asked for, and writes chaos.json after every round."""
    line = parser(__doc__)
    line.add_argument("--rounds", type=int, default=200)
    line.add_argument("--resume", action="store_true", help="go on with the results in --out")
    line.add_argument("--seconds", type=float, default=1e9, help="begin no round after so many")
    line.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    line.add_argument("--cases", type=int, default=10_000, help="of fuzzing, each kind; 0: none")
    line.add_argument("--iterations", type=int, default=1000, help="for memory; 0: none")
    line.add_argument("--evaluations", type=int, default=200, help="for memory")
    line.add_argument("--worlds", type=int, default=6, help="extreme ones; 0: none")
    line.add_argument("--scratch", type=Path, help="keep runs that did not survive here")
    arguments = line.parse_args()
    sys.excepthook = in_one_line
    results: dict[str, Any] = {}
    before = arguments.out / "chaos.json"
    if arguments.resume and before.is_file():
        results = json.loads(before.read_text())["results"]
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.scratch or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAXQMIX_CACHE", str(folder / "cache"))
        found, here = results.pop("every_round", []), ask(folder, machine)

        def note(row: dict[str, Any] | None = None) -> None:
            found.extend([row] if row else [])
            together = summary_of(found) | results | {"every_round": found}
            save("chaos", together, arguments.out, here)

        numbers = range(len(found), arguments.rounds)
        results = {name: results[name] for name in PARTS if name in results}
        rounds(numbers, arguments.seconds, arguments.kinds, folder, note)
        if arguments.cases:
            results["fuzzing"] = fuzz(arguments.cases)
            note()
        if arguments.iterations:
            asked = arguments.iterations, arguments.evaluations
            for kind in ("online mlp", "replay mlp"):
                grown = ask(folder, lambda kind=kind: memory(KINDS[kind], *asked))
                results.setdefault("memory", {})[kind] = grown
                note()
        if arguments.worlds:
            results["worlds"] = []
        for seed in range(arguments.worlds):
            world = extreme_world(seed)
            finite = ask(folder, lambda world=world: fly_world(world))
            results["worlds"].append(world | {"finite": finite})
            note()
    summary = summary_of(found)
    rows = [[way, *counts.values()] for way, counts in summary["by_way"].items()]
    names = ("way", "tried", "harms", "survived", "lost", "differing", "hung", "tracebacks")
    show(f"{summary['rounds']} rounds", names, rows)
    note()
    wrong = summary["noted"] + [w for w in results.get("worlds", []) if w["finite"] is not True]
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
