"""The benchmarks run: help, measuring, saving, and one tiny real measurement."""

import gzip
import importlib
import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jaxqmix.config import ConfigError

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(
    path for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


@pytest.fixture
def run(monkeypatch):
    """Runs a script in this process with arguments."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def start(name, *arguments):
        monkeypatch.syspath_prepend(str(FOLDER))
        monkeypatch.setattr(sys, "argv", [str(FOLDER / name), *arguments])
        return runpy.run_path(str(FOLDER / name), run_name="__main__")

    return start


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_explains_itself(script, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(script.name, "--help")
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.fixture
def common(monkeypatch):
    """The module that the benchmarks share."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("common")


def test_times_are_of_the_calls_after_the_first(common, monkeypatch):
    ticks = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0, 30.0, 34.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(common, "time", clock)
    found = common.measure(lambda: None, repeats=3)
    assert found == {"first_call": 9.0, "median": 2.0, "lowest": 1.0, "highest": 4.0}
    assert common.per_second(8, found) == {"median": 4.0, "lowest": 2.0, "highest": 8.0}


def test_spans_of_compilation_that_nest_count_once(common):
    clock = common.CompileClock()
    clock.spans = [(1.0, 4.0), (2.0, 3.0), (3.5, 5.0), (7.0, 8.0)]
    assert clock.seconds == pytest.approx(5.0)


def test_rivals_are_measured_in_turn(common):
    order, ours, theirs = [], iter([1, 8.0, 6.0, 4.0]), iter([1, 2.0, 2.0, 1.0])
    found = common.versus(
        lambda: order.append("ours") or next(ours),
        lambda: order.append("theirs") or next(theirs),
        rounds=3,
    )
    assert order == ["ours", "theirs"] * 4
    assert found["times"] == {"median": 4.0, "lowest": 3.0, "highest": 4.0}
    assert found["ours"]["median"] == 6.0


def test_a_tiny_measurement_leaves_a_table_a_plot_and_json(run, tmp_path, capsys):
    run("environment.py", "--preset", "quick", "--drones", "2", "--swarms", "2", "--cell-size",
        "50", "--repeats", "1", "--out", str(tmp_path))  # fmt: skip
    assert "env steps/s" in capsys.readouterr().out
    saved = json.loads((tmp_path / "environment.json").read_text())
    assert saved["machine"]["command"].startswith("python benchmarks/environment.py --preset quick")
    assert saved["machine"]["cores"] >= 1
    (row,) = saved["results"]["rows"]
    assert row["drones"] == row["swarms"] == 2 and row["bytes_per_swarm"] > 500
    for part in ("world", "observed"):
        assert row[part]["compile_seconds"] > 0
        speed = row[part]["env_steps_per_second"]
        assert 0 < speed["lowest"] <= speed["median"] <= speed["highest"]
    assert (tmp_path / "environment.png").stat().st_size > 5000


def test_a_run_is_good_enough_at_the_third_evaluation_in_a_row(common, monkeypatch):
    race = importlib.import_module("time_to_criteria").Race
    stops = []
    monkeypatch.setattr("signal.raise_signal", stops.append)
    watch = race(common.CompileClock())

    def evaluated(step, met, final=False):
        figures = dict.fromkeys(common.METRICS, 0.5)
        success = {"coverage": met, "return": True}
        watch.on_evaluation({"env_steps": step, "final": final, "success": success, **figures})

    for step, met in enumerate([True, True, False, True, True]):
        evaluated(step, met)
    evaluated(5, True, final=True)
    assert watch.met is None and not stops
    evaluated(6, True)
    assert watch.met["env_steps"] == 6 and len(stops) == 1


@pytest.fixture
def missions(monkeypatch):
    """The module that trains the seeds of the missions."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("missions")


def test_criteria_are_reached_and_kept(missions):
    def curve(*met):
        found = [{"final": False, "met": m, "seconds": i, "env_steps": 10 * i}
                 for i, m in enumerate(met)]  # fmt: skip
        return [*found, {"final": True, "met": False, "seconds": 99, "env_steps": 990}]

    found = missions.reached(curve(*[True] * 10))
    assert found == {"seconds_to_criteria": 2, "env_steps_to_criteria": 20, "stable": True}
    assert not missions.reached(curve(*[True] * 8, False, True))["stable"]
    assert missions.reached(curve(*[True] * 7, False, True, True))["stable"]
    assert missions.reached(curve(True, True, False, True))["seconds_to_criteria"] is None


def test_rows_of_other_settings_are_neither_lost_nor_mixed(missions, tmp_path):
    path = tmp_path / "missions.json"
    rows = [{"preset": name, "policy": policy} for name in ("quick", "full")
            for policy in ("lanes", "qmix online")]  # fmt: skip
    rows = [row | {"settings": missions.settings(row, None)} for row in rows]
    path.write_text(json.dumps({"results": rows}))
    asked = {("quick", "qmix online")}
    kept = missions.kept_rows(path, asked)
    new = missions.merged(kept, [{"preset": "quick", "policy": "qmix online", "seeds": 5}])
    assert sorted(map(missions.name_of, new)) == sorted(map(missions.name_of, rows))
    assert next(row for row in new if "seeds" in row)["preset"] == "quick"
    with pytest.raises(SystemExit, match="full qmix online with other settings"):
        missions.kept_rows(path, asked, budget=1000)
    both = asked | {("full", "qmix online")}
    assert missions.kept_rows(path, both, budget=1000) == kept  # planners do not train
    assert missions.kept_rows(tmp_path / "none.json", asked) == []


def test_settings_that_are_not_allowed_get_one_line(run, tmp_path, capsys):
    with pytest.raises(ConfigError) as found:
        run("environment.py", "--drones", "0", "--out", str(tmp_path))
    sys.excepthook(found.type, found.value, None)
    said = capsys.readouterr().err
    assert said.startswith("environment.py: env.drones = 0 is not allowed")
    assert said.count("\n") == 1


def test_variants_that_do_not_exist_are_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("ablations.py", "--only", "vnd", "--out", str(tmp_path))
    assert "--only vnd: variants are as it is, " in capsys.readouterr().err


def test_one_failing_benchmark_does_not_stop_the_rest(run, monkeypatch, capfd):
    codes = iter([3, 0])

    class Finished:
        def __init__(self, *_, **__):
            self.returncode = next(codes)

    monkeypatch.setattr("subprocess.run", Finished)
    with pytest.raises(SystemExit) as stopped:
        run("run_all.py", "--only", "environment", "roofline")
    assert stopped.value.code == 1
    said = capfd.readouterr().out
    assert "environment: failed with code 3" in said and "roofline: ok" in said


def test_a_trace_is_read_by_kernel(monkeypatch, tmp_path):
    """Only what ran on a GPU's streams counts."""
    monkeypatch.syspath_prepend(str(FOLDER))
    gpu = importlib.import_module("gpu")

    def named(kind, name, pid, **more):
        return {"ph": "M", "name": kind, "pid": pid, "args": {"name": name}, **more}

    events = [
        named("process_name", "/device:GPU:0", 1),
        named("process_name", "/host:CPU", 2),
        named("thread_name", "Stream #7(Compute)", 1, tid=7),
        named("thread_name", "Launch Stats", 1, tid=8),
        {"ph": "X", "name": "fusion", "pid": 1, "tid": 7, "dur": 3.0},
        {"ph": "X", "name": "fusion", "pid": 1, "tid": 8, "dur": 5.0},
        {"ph": "X", "name": "python", "pid": 2, "tid": 7, "dur": 7.0},
    ]
    file = tmp_path / "host.trace.json.gz"
    with gzip.open(file, "wt") as text:
        json.dump({"traceEvents": events}, text)
    assert list(gpu.kernels(file)) == [("fusion", 3.0)]


def test_what_the_time_does_not_allow_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    gpu = importlib.import_module("gpu")

    def fails():
        raise ValueError("no such kernel")

    monkeypatch.setattr(gpu, "stages", lambda *_: [("one", dict), ("two", fails)])
    given = types.SimpleNamespace(small=True, minutes=1.0, repeats=1, out=tmp_path)
    gpu.main(given)
    saved = json.loads((tmp_path / "gpu_small.json").read_text())["results"]
    assert saved == {"one": {}, "two": {"failed": "ValueError: no such kernel"}}
    given.minutes, given.out = 0.0, tmp_path / "none"
    gpu.main(given)
    assert "one and what follows are left out" in capsys.readouterr().out
    assert not given.out.exists()


def test_sites_alone_fly_their_own_cities_and_others(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    federated = importlib.import_module("federated")

    def evaluate(agents, seed, episodes, stream):
        place = np.arange(3.0)[:, None]  # two sites and a stranger
        return dict.fromkeys(federated.METRICS, np.repeat(10 * agents + place, episodes, axis=1))

    given = types.SimpleNamespace(strangers=1, episodes=2)
    agents = np.array([[0.0], [1.0]])
    row = federated.flown_alone(evaluate, agents, 2, given)
    assert row["t90"] == row["t90_of_own"] == (0 + 11) / 2
    assert row["t90_of_others"] == (1 + 10) / 2 and row["t90_of_strangers"] == (2 + 12) / 2
    row = federated.flown(evaluate, agents[1], 2, given)
    assert row["t90"] == (10 + 11) / 2 and row["t90_of_strangers"] == 12
