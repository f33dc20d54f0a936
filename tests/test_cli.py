"""The command line as a newcomer types it, typos included."""

import subprocess
import sys

import pytest

from jaxqmix import cli


def refused(capsys, *arguments: str) -> str:
    """Runs a command that must be refused; returns its one line."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("jaxqmix: ") and error.count("\n") == 1
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tran", "quick"], ["tran", "did you mean train?"]),
        (["train"], ["preset is missing", "quick, full, scale20"]),
        (["train", "quik"], ["preset = quik", "quick, full, scale20"]),
        (["train", "quick", "--env.drons", "3"], ["--env.drons", "--env.drones"]),
        (["train", "quick", "--env.drones", "x"], ["--env.drones", "x"]),
        (["train", "quick", "--env.drones", "0"], ["env.drones = 0", "between 1 and 100"]),
        (["train", "quick", "--env.drones", "-3"], ["env.drones = -3"]),
        (["train", "quick", "--env.city-width", "0"], ["env.city_width = 0"]),
        (["train", "quick", "--env.cell-size", "2000"], ["env.cell_size = 2000"]),
        (["train", "full", "--env.cell-size", "1250", "--env.drones", "50"], ["env.drones = 50"]),
        (["train", "quick", "--domain.packet-loss", "0", "1.5"], ["packet_loss", "1.5"]),
        (["train", "quick", "--learner.gamma", "2"], ["learner.gamma = 2", "0 and 1"]),
        (["train", "quick", "--mode", "offline"], ["offline", "replay"]),
        (["train", "quick", "--env-steps", "639"], ["training.env_steps = 639", "640"]),
        (["train", "quick", "--episodes", "0"], ["training.episodes = 0"]),
        (["evaluate"], ["run is missing"]),
        (["evaluate", "nowhere"], ["checkpoint = nowhere"]),
        (["evaluate", "quick", "--planner", "gredy"], ["gredy", "greedy"]),
        (["render", "nowhere", "--out", "x.foo"], ["out = x.foo", ".html"]),
        (["render", "nowhere"], ["out"]),
        (["plot"], ["run", "at least one"]),
        (["plot", "nowhere"], ["run = nowhere", "no metrics"]),
    ],
)
def test_bad_input_gets_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *arguments)
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir())


def test_every_setting_is_documented(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "quick", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for setting in (
        "--env.drones",
        "--domain.packet-loss",
        "--learner.trace",
        "--resume",
        "--seed",
    ):
        assert setting in text


def test_help_does_not_load_jax():
    code = (
        "import sys; from jaxqmix import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "import jaxqmix; assert 'jax' not in sys.modules"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "train" in output.stdout


def test_planners_are_evaluated_from_a_preset(capsys, tmp_path):
    import json

    report = tmp_path / "report.json"
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["evaluate", "quick", "--planner", "random", "--episodes", "3", "--json", str(report)]
        )
    assert stop.value.code == 0
    found = json.loads(report.read_text())
    assert found["policy"] == "random" and found["episodes"] == 3 and found["drones"] == 5
    assert found["coverage_ci95"][0] <= found["coverage"] <= found["coverage_ci95"][1]
    assert "unseen cities" in capsys.readouterr().out
