"""The benchmarks run: help, measuring, saving, and one tiny real measurement."""

import importlib
import json
import runpy
import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(
    path for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


@pytest.fixture
def run(monkeypatch):
    """Runs a script in this process with arguments."""

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
        watch.evaluated({"env_steps": step, "final": final, "success": success, **figures})

    for step, met in enumerate([True, True, False, True, True]):
        evaluated(step, met)
    evaluated(5, True, final=True)
    assert watch.met is None and not stops
    evaluated(6, True)
    assert watch.met["env_steps"] == 6 and len(stops) == 1


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
