"""The command line as a newcomer types it, typos included."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxqmix import api, cli, presets
from jaxqmix.commands import arguments
from jaxqmix.commands.common import write
from jaxqmix.commands.evaluate import find_policy
from jaxqmix.config import ConfigError, to_dict
from jaxqmix.metrics import check_writable
from jaxqmix.presets import preset
from jaxqmix.validate import MISSION


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
        (["train", "quick", "--learner.double-q", "maybe"], ["maybe", "False, True"]),
        (["train", "quick", "--learner.double-q"], ["--learner.double-q misses a value"]),
        (["train", "quick", "--env-steps", "639"], ["training.env_steps = 639", "640"]),
        (["train", "quick", "--episodes", "0"], ["training.episodes = 0"]),
        (["train", "quick", "--seed", "1e3"], ["--training.seed = 1e3", "a whole number"]),
        (["train", "quick", "--episodes", "1e3"], ["--training.episodes = 1e3", "a whole number"]),
        (["evaluate", "nowhere", "--drones", "x"], ["--drones = x", "a whole number"]),
        (["train", "quick", "--env.horizon", "3000000000"], ["env.horizon = 3000000000"]),
        (["train", "quick", "--env.city-width", "1e9"], ["env.city_width = 1000000000", "cells"]),
        (["train", "quick", "--env.city-width", "x"], ["--env.city-width = x", "a number"]),
        (["train", "quick", "--env.drones"], ["--env.drones misses a value"]),
        (["train", "quick", "--domain.packet-loss"], ["packet-loss misses a value", "2"]),
        (["train", "quick", "--domain.packet-loss", "2"], ["domain.packet_loss = (2.0, 2.0)"]),
        (["train", "quick", "--lr", "0.1"], ["--lr is not known", "--learner.learning-rate?"]),
        (["train", "quick", "--gamma", "0.9"], ["did you mean --learner.gamma?"]),
        (["train", "quick", "--config", "no.json"], ["config = no.json", "No such file"]),
        (["train", "--config"], ["--config", "misses a value"]),
        (["nonsense"], ["command = nonsense", "must be one of"]),
        (["evaluate", "quick", "--planner", "lanes", "--env.drons", "3"], ["--env.drones"]),
        (["evaluate", "quick", "--planner", "lanes", "--env.drones", "0"], ["env.drones = 0"]),
        (["evaluate", "quick", "--planner", "lanes", "--domain.wind-speed", "99"], ["wind_speed"]),
        (["render", "nowhere", "--out", "x.htm"], ["out = x.htm", "did you mean x.html?"]),
        (
            ["train", "quick", "--domain.packet-loss", "0", "x"],
            ["preset = quick x", "give one preset"],
        ),
        (["train", "quick", "--domain.packet-loss", "nan", "nan"], ["packet_loss = nan", "finite"]),
        (["train", "quick", "--learner.gamma", "nan"], ["learner.gamma = nan", "finite"]),
        (["train", "quick", "full"], ["preset = quick full", "give one"]),
        (["train", "--seed", "3"], ["preset is missing"]),
        (["train", "--seed", "3", "quick", "--env.drones", "0"], ["env.drones = 0"]),
        (["train", "quick", "--preset", "full"], ["preset = full", "name one preset"]),
        (["train", "--out", "quick"], ["preset is missing"]),
        (["train", "--out", "quick", "full", "--env.drones", "0"], ["env.drones = 0"]),
        (
            ["train", "quick", "--resume", "--out", "nowhere"],
            ["checkpoint = ", "nowhere is not allowed"],
        ),
        (["evaluate"], ["run is missing"]),
        (["evaluate", "nowhere"], ["checkpoint = nowhere"]),
        (["evaluate", "quick"], ["run = quick", "preset", "jaxqmix train quick"]),
        (["evaluate", "a", "b"], ["run = a b", "give one run"]),
        (["evaluate", "--episodes", "3", "a", "b"], ["run = a b"]),
        (["evaluate", "a", "-3"], ["-3 is not known"]),
        (["evaluate", "nowhere", "--json", "."], ["json = .", "folder"]),
        (["evaluate", "nowhere", "--trajectories", "a.txt"], ["trajectories = a.txt", ".npz"]),
        (
            ["evaluate", "quick", "--planner", "gredy"],
            ["--planner = gredy", "one of greedy, lanes, random, tours, voronoi\n"],
        ),
        (["render", "nowhere", "--out", "x.foo"], ["out = x.foo", ".png or .gif or .mp4 or .html"]),
        (["render", "nowhere"], ["out"]),
        (["plot"], ["run is missing", "at least one"]),
        (["plot", "nowhere"], ["run = nowhere", "no metrics"]),
        (["plot", "nowhere", "--out", "x.foo"], ["out = x.foo", ".png or .pdf or .svg"]),
        (["plot", "a\0b"], ["argument = a", "null character"]),
        (["plot", "nowhere", "--planner", "gredy"], ["--planner = gredy", "greedy, lanes"]),
    ],
)
def test_bad_input_gets_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *arguments)
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["--seed", "1e3"], ["--mode", "offline"], ["--env.drones"], ["--gamma", "1"]],
    ids=lambda arguments: arguments[0],
)
def test_what_tyro_says_in_another_way_still_gets_one_line(capsys, monkeypatch, arguments):
    """As where a version has no error objects."""
    monkeypatch.setattr("jaxqmix.commands.common.explained", lambda *_: None)
    assert arguments[0].strip("-") in refused(capsys, "train", "quick", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "quick", "--out", "file"],
        ["train", "quick", "--out", "file/run"],
        ["evaluate", "nowhere", "--json", "file/report.json"],
        ["evaluate", "nowhere", "--trajectories", "file/flights.npz"],
        ["render", "nowhere", "--out", "file/swarm.gif"],
        ["plot", "nowhere", "--out", "file/curves.png"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_places_that_cannot_be_written_are_refused_before_work(
    capsys, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    error = refused(capsys, *arguments)
    # A run's folder is named whole.
    assert f"{arguments[-2].lstrip('-')} = " in error and f"{arguments[-1]} is not allowed" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "quick", "--out", "x" * 300],
        ["evaluate", "nowhere", "--json", "x" * 300],
        ["plot", "x" * 300],
    ],
    ids=lambda arguments: arguments[0],
)
def test_names_that_the_system_refuses_get_one_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert "too long" in refused(capsys, *arguments)


def test_folders_that_may_not_be_searched_get_one_line(monkeypatch, tmp_path):
    """As below another user's home."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbidden)
    with pytest.raises(ConfigError, match=r"out = .* is not allowed: Permission denied"):
        check_writable("out", tmp_path / "run")


def test_a_drive_that_is_not_there_gets_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(ConfigError, match=r"out = .* is not allowed: there is no such drive"):
        check_writable("out", tmp_path / "run")


def test_used_and_foreign_folders_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("kept")
    assert "it is not empty; add --resume" in refused(capsys, "train", "quick", "--out", ".")
    error = refused(capsys, "train", "quick", "--out", ".", "--resume")
    assert "must be a run's folder" in error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_wandb_is_asked_for_before_work(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = refused(capsys, "train", "quick", "--wandb", "swarms")
    assert 'wandb = swarms needs Weights & Biases: pip install ".[wandb]"' in error
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path, capsys):
    path = tmp_path / "folder" / "report.json"
    write(path, lambda part: part.write_text("first"))
    assert capsys.readouterr().out == f"wrote {path}\n"

    def interrupted(part):
        part.write_text("sec")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted)
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    assert path.read_text() == "first"


@pytest.mark.parametrize("columns", ["1", "20", "nonsense"])
def test_help_ends_in_terminals_of_any_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--help"])
    assert stop.value.code == 0 and "--episodes" in capsys.readouterr().out


def settings_of(config, prefix="--"):
    """Every setting of a config as the command line calls it, with its default."""
    for item in dataclasses.fields(config):
        name, value = prefix + item.name.replace("_", "-"), getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{name}.")
        else:
            yield name, value


def test_every_setting_is_documented(capsys, monkeypatch):
    """With what it takes, a sentence and its default."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "quick", "--help-all"])
    text = re.sub(r"[│╭╮╰╯─|+]+", " ", capsys.readouterr().out)
    assert stop.value.code == 0
    entries = [" ".join(entry.split()) for entry in re.split(r"\n\s*(?=--\w)", text)]
    shown = {re.match(r"--[\w.-]+|", entry)[0]: entry for entry in entries}
    expected = dict(settings_of(preset("quick")))
    assert len(expected) > 70
    for name, default in expected.items():
        values = default if isinstance(default, tuple) else (default,)
        ending = f"(default: {' '.join(map(str, values))})"
        entry = shown[name]
        assert ending in entry, entry
        description = entry[: entry.index(ending)].split()[1:]
        assert len(description) > 3 and description[-1].endswith("."), entry
    for name in ("--mode", "--seed", "--env-steps", "--episodes", "--out", "--resume", "--wandb"):
        assert "(default: " in shown[name]


def test_help_begins_with_what_people_use(capsys):
    """On one screen, with examples; every setting there exists."""
    assert cli.run(["train", "full", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") < 45 and "--help-all" in text and "(1000000)" in text
    with pytest.raises(SystemExit):
        cli.run(["train", "quick", "--help-all"])
    known = set(re.findall(r"--[a-z.-]+", capsys.readouterr().out))
    named = set(re.findall(r"--[a-z.-]+", text)) - {"--setting", "--config", "--help-all"}
    assert named <= known and len(named) > 15


def started(monkeypatch, *words: str):
    """The run's config that a command starts."""
    runs = []
    monkeypatch.setattr("jaxqmix.runner.train", lambda config, *_: runs.append(config))
    monkeypatch.setattr("jaxqmix.commands.train.prepare_jax", lambda: None)
    assert cli.run(["train", *words]) == 0
    return runs[0]


def test_a_run_is_described_by_a_file(tmp_path, monkeypatch):
    """JSON or YAML, nested or dotted, all settings or some; words of the command line win."""
    again = preset("full", **{"env.drones": 7, "domain.wind_speed": 3.0})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(again)))
    assert started(monkeypatch, "--config", str(tmp_path / "config.json")) == again
    some = tmp_path / "some.yaml"
    some.write_text("preset: full\nenv.drones: 7\ndomain:\n  wind_speed: 3.0\n")
    assert started(monkeypatch, "full", f"--config={some}") == again
    config = started(monkeypatch, "--config", str(some), "--env.drones", "9", "--seed", "4")
    assert config == again.replace(**{"env.drones": 9, "training.seed": 4})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preset: quik", "preset = quik is not allowed"),
        ("name: mine", "name = mine is not allowed: there is no such setting"),
        ("env: {drons: 3}", "env.drons = 3 is not allowed: did you mean env.drones?"),
        ("- quick", "must hold settings by name"),
        ("a: [", "config = "),
        ("env.drones: many", "env.drones = 'many'"),
    ],
)
def test_bad_files_get_one_line(text, words, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    error = refused(capsys, "train", "--config", str(file))
    assert words in error and "run.yaml" in error


def test_one_number_fixes_a_range(monkeypatch):
    words = "quick --domain.packet-loss 0.3 --domain.wind_speed=5 --domain.delay 0 0.2 --seed 3"
    domain = started(monkeypatch, *words.split()).domain
    assert (domain.packet_loss, domain.wind_speed, domain.delay) == ((0.3, 0.3), (5, 5), (0, 0.2))


@pytest.mark.parametrize(
    ("line", "world", "rest"),
    [
        ("--domain.packet-loss 0.5 runs/quick", "--domain.packet-loss 0.5 0.5", "runs/quick"),
        ("runs/quick --env.drones 8 --seed 3", "--env.drones 8", "runs/quick --seed 3"),
        ("--env.no-fly-zones=2 a --domain.wind-speed 0 9 b",
         "--env.no-fly-zones=2 --domain.wind-speed 0 9", "a b"),
        ("--domain.reward.perimeter 0 --out x.gif", "--domain.reward.perimeter 0", "--out x.gif"),
    ],
)  # fmt: skip
def test_settings_of_the_world_are_told_from_others(line, world, rest):
    assert arguments.split_world(line.split()) == (world.split(), rest.split())


def test_policies_fly_in_another_world(monkeypatch):
    """What differs from the run or preset is said in the report."""
    monkeypatch.setattr("jaxqmix.commands.evaluate.prepare_jax", lambda: None)
    words = ["--domain.packet-loss", "0.5", "0.5", "--env.drones", "4"]
    loaded = find_policy("quick", "lanes", None, None, words)
    assert loaded.changed == {"env.drones": 4, "domain.packet_loss": "(0.5, 0.5)"}
    assert loaded.policy.config.drones == 4
    assert find_policy("quick", "lanes", 6).changed == {"env.drones": 6}
    assert find_policy("quick", "lanes", None).changed == {}


def test_runs_of_similar_names_are_proposed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quick").mkdir(parents=True)
    for command in ("evaluate", "plot"):
        assert "did you mean runs/quick?" in refused(capsys, command, "runs/quik")


def test_videos_are_refused_before_the_flight_without_their_encoder(capsys, monkeypatch):
    monkeypatch.setattr("jaxqmix.commands.evaluate.find_spec", lambda name: None)
    error = refused(capsys, "render", "quick", "--planner", "lanes", "--out", "x.mp4")
    assert error == 'jaxqmix: out = x.mp4 needs imageio-ffmpeg: pip install ".[video]"\n'


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


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of another kind")
def test_a_reader_that_has_seen_enough_gets_no_traceback():
    command = [sys.executable, "-m", "jaxqmix", "train", "quick", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_planners_are_evaluated_from_a_preset(capsys, tmp_path):
    report, flights = tmp_path / "report.json", tmp_path / "flights.NPZ"
    files = ["--json", str(report), "--trajectories", str(flights)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "quick", "--planner", "random", "--episodes", "3", *files])
    assert stop.value.code == 0
    assert np.load(flights)["positions"].shape == (3, 101, 5, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flights.NPZ", "report.json"]
    found = json.loads(report.read_text())
    assert found["policy"] == "random" and found["episodes"] == 3 and found["drones"] == 5
    assert found["coverage_ci95"][0] <= found["coverage"] <= found["coverage_ci95"][1]
    assert "unseen cities" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".png", ".gif", ".html"])
def test_planners_are_drawn_with_other_numbers_of_drones(capsys, tmp_path, monkeypatch, ending):
    tiny = dataclasses.replace(MISSION, env=dataclasses.replace(MISSION.env, horizon=6))
    monkeypatch.setitem(presets.PRESETS, "quick", tiny)
    flown, out = [], tmp_path / f"flight{ending}"
    record = api.record

    def recorded(loaded, seed):
        flown.append(record(loaded, seed=seed))
        return flown[-1]

    monkeypatch.setattr(api, "record", recorded)
    command = ["render", "quick", "--planner", "greedy", "--drones", "3", "--out", str(out)]
    assert cli.run(command) == 0
    assert out.stat().st_size > 2000 and f"wrote {out}" in capsys.readouterr().out
    assert [episode.positions.shape[1] for episode in flown] == [3]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--out quick full", ("full", "online", 64, 1_000_000, None, 0)),
        ("quick --seed 3 --env-steps 5000", ("quick", "online", 64, 5000, None, 3)),
        # What a shortcut gives is what is judged, not the preset's value in its place.
        ("quick --mode replay --training.swarms 50", ("quick", "replay", 50, 200_000, None, 0)),
        ("--training.swarms 65536 quick --episodes=1000000",
         ("quick", "online", 65536, 200_000, 1_000_000, 0)),
        ("quick --training.swarms 65536 --env_steps 100000000",
         ("quick", "online", 65536, 100_000_000, None, 0)),
    ],
)  # fmt: skip
def test_shortcuts_are_short_for_settings(line, expected, monkeypatch):
    runs = []
    monkeypatch.setattr("jaxqmix.runner.train", lambda config, *_: runs.append(config))
    monkeypatch.setattr("jaxqmix.commands.train.prepare_jax", lambda: None)
    assert cli.run(["train", *line.split()]) == 0
    (config,) = runs
    training = config.training
    assert expected == (config.preset, training.mode, training.swarms, training.env_steps,
                        training.episodes, training.seed)  # fmt: skip
