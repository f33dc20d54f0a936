"""Commands and Python of the README and the guide run as they stand, with tiny missions behind.

One training is real: over a city. `TRAINED` says which tests do the others for real.
"""

import argparse
import dataclasses
import functools
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import quick_options

from jaxqmix import checkpoints, cli, folders, presets, runner
from jaxqmix.config import CheckpointConfig, EvaluationConfig
from jaxqmix.seeds import seed_configs
from jaxqmix.training import make_trainer
from jaxqmix.validate import MISSION

FOLDER = Path(__file__).parents[1]
PAGES = [FOLDER / "README.md", *sorted((FOLDER / "notebooks" / "guide").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"^```(\S*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
LINES = [line for _, block in BLOCKS for line in block.splitlines()]
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
WRITTEN = dict.fromkeys([*LINES, *re.findall(r"`([^`\n]+)`", PROSE)])
"""Lines of blocks and words in the text that are code, each once."""
ELSEWHERE = ("jaxqmix demo", "jaxqmix validate")
"""Commands with tests of their own: one asks questions, the other takes long."""
FEDERATED = [
    line
    for line in WRITTEN
    if re.match(r"jaxqmix federate (?!PRESET)|jaxqmix evaluate .*--site", line)
]
"""They compile for long: here they are only understood; `test_federated_training.py` runs such."""
SEVERAL = [line for line in WRITTEN if re.match(r"jaxqmix train .*--coordinator", line)]
"""They wait for each other; `test_processes.py` runs such."""
TRAINED = {
    "jaxqmix train quick": "test_training: test_a_run_leaves_what_it_promises",
    "jaxqmix train quick --seeds 5": "test_seeds: test_each_seed_leaves_what_a_run_does",
    "jaxqmix train quick --mode replay --seed 1 --episodes 5000 --out runs/quick-replay":
        "test_training: test_a_stopped_run_resumes_bit_equal",
    "jaxqmix train quick --resume": "test_training: test_a_stopped_run_resumes_bit_equal",
    "jaxqmix train full --env-steps 500000 --learner.mixer vdn":
        "test_learner: test_two_step_game_of_the_qmix_paper",
    "jaxqmix train --config runs/quick/config.json --seed 2 --out runs/again":
        "test_training: test_a_seed_repeats_and_another_differs",
}  # fmt: skip
"""Trainings, and which test trains such a run for real. Here all is real up to `runner.train` and
`train_seeds`, and a run with weights that learned nothing is left for the other commands."""
COMMANDS = [
    line
    for line in WRITTEN
    # Words in capitals stand for something.
    if line.startswith("jaxqmix ")
    and not re.search(r"\b[A-Z]+\b", line)
    and line not in (*ELSEWHERE, *FEDERATED, *SEVERAL)
]
BENCHMARKS = [line for line in WRITTEN if line.startswith("python benchmarks/")]
TINY = dataclasses.replace(
    MISSION,
    env=dataclasses.replace(MISSION.env, horizon=10),
    training=dataclasses.replace(MISSION.training, env_steps=80),
    evaluation=EvaluationConfig(every_episodes=4, episodes=2, final_episodes=2),
    checkpoint=CheckpointConfig(every_episodes=4),
)
BUDGETS = ("--env-steps", "--episodes")
"""What is asked for in the README is replaced: it would train for minutes."""


@pytest.fixture(autouse=True)
def tiny_missions(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # One device spares the partitioner, and a planner without a search the longest programs.
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr("jaxqmix.comparison.RIVALS", ("random",))
    for name in presets.PRESETS:
        monkeypatch.setitem(presets.PRESETS, name, dataclasses.replace(TINY, preset=name))


@functools.cache
def untrained(learner):
    """A state of a run with these settings of the learner: every array is zero."""
    shapes = make_trainer(dataclasses.replace(TINY, learner=learner)).state_shapes
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def leave_run(config, out, resume=False, callback=None, wandb=None, env=None):
    """In place of `runner.train`: leaves a run that learned nothing, with another's metrics."""
    run = Path(out)
    if resume:
        assert checkpoints.steps_of(run, "final")
        return
    folders.check_folder(run, resume)
    folders.make_folder(run, config)
    writer = checkpoints.Checkpoints(run, config, begun=0)
    writer.save("final", config.iterations, untrained(config.learner))
    real = Path("runs/mine/metrics.jsonl")
    if real.exists():
        shutil.copy(real, run)


def leave_seeds(config, out, seeds, *_):
    """In place of `train_seeds`."""
    for number, each in enumerate(seed_configs(config, seeds)):
        leave_run(each, Path(out) / f"seed-{number}")


def leave_runs(patch):
    """No training from here on: a folder of a run is left instead."""
    patch.setattr(runner, "train", leave_run)
    patch.setattr("jaxqmix.seeds.train_seeds", leave_seeds)


def affordable(command: str) -> list[str]:
    """The command's arguments with a tiny budget."""
    arguments = shlex.split(command)[1:]
    for index, argument in enumerate(arguments[:-1]):
        if argument in BUDGETS:
            arguments[index + 1] = "80" if argument == "--env-steps" else "8"
    return arguments


def test_every_command_runs(monkeypatch):
    assert {command.split()[1] for command in COMMANDS} >= {"train", "evaluate", "render", "plot"}
    assert "jaxqmix train quick --help" in COMMANDS
    for command in COMMANDS:
        with monkeypatch.context() as patch:
            if command in TRAINED:
                leave_runs(patch)
            assert cli.run(affordable(command)) == 0, command
    for file in ("report.json", "flights.npz", "swarm.html", "curves.png", "runs/mine/replay.gif"):
        assert Path(file).stat().st_size > 0


def test_trainings_are_real_elsewhere():
    assert set(TRAINED) <= set(COMMANDS)
    for place in TRAINED.values():
        file, name = place.split(": ")
        text = (FOLDER / "tests" / f"{file}.py").read_text(encoding="utf-8")
        assert f"\ndef {name}(" in text, place


@pytest.mark.parametrize("line", FEDERATED)
def test_federations_are_understood(line, monkeypatch):
    monkeypatch.setattr("jaxqmix.commands.federate.run", lambda given: 7)
    monkeypatch.setattr("jaxqmix.federated.run.site_folder", lambda run, site: Understood.now())
    if "--site " in line:
        with pytest.raises(Understood):
            cli.run(shlex.split(line)[1:])
    else:
        assert cli.run(shlex.split(line)[1:]) == 7


def test_runs_of_several_processes_are_understood(monkeypatch):
    assert len(SEVERAL) >= 2
    joined = []
    monkeypatch.setattr("jaxqmix.processes.join", lambda *place: joined.append(place))
    monkeypatch.setattr("jaxqmix.commands.train.prepare_jax", lambda: None)
    monkeypatch.setattr(runner, "train", lambda *_: None)
    for line in SEVERAL:
        assert cli.run([*shlex.split(line)[1:], "--scale", "cpu"]) == 0
    assert joined[:2] == [("node0:12345", 2, 0), ("node0:12345", 2, 1)]


def test_commands_of_the_table_exist():
    named = set(re.findall(r"^\| `jaxqmix (\w+)", TEXT, flags=re.MULTILINE))
    assert named == set(cli.COMMANDS)


def test_python_runs(monkeypatch):
    """All but the training, which `test_training.py` does, and JaxMARL's, an extra."""
    leave_runs(monkeypatch)
    quickly = functools.partial(jax.jit, compiler_options=quick_options())
    monkeypatch.setattr(jax, "jit", quickly)
    # The README's block opens the guide's page too.
    code = dict.fromkeys(block for language, block in BLOCKS if language == "python")
    code = [block for block in code if "JaxMarl" not in block]
    names = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert names["actions"].shape == (2,)
    assert isinstance(names["actions"], jax.Array) and names["report"]["episodes"] == 64


def test_every_setting_exists(capsys):
    with pytest.raises(SystemExit):
        cli.run(["train", "quick", "--help-all"])
    known = set(re.findall(r"--[a-z.-]+", capsys.readouterr().out))
    named = set(re.findall(r"`(--[a-z]+\.[a-z.-]+)`", PROSE))
    assert len(named) > 20 and named <= known


class Understood(Exception):
    """Raised in place of the work of a command, once it has read its arguments."""

    @classmethod
    def now(cls) -> None:
        """Raises it."""
        raise cls


LONG = runpy.run_path(str(FOLDER / "benchmarks" / "run_all.py"))["LONG"]
LONG = [f"python benchmarks/{name}.py {options}" for name, options in LONG.items()]


@pytest.mark.parametrize("command", BENCHMARKS + LONG)
def test_benchmarks_understand_their_arguments(command, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *arguments):
        parse(self, *arguments)
        raise Understood

    _, script, *arguments = shlex.split(command)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str(FOLDER / "benchmarks"))
    with pytest.raises(Understood):
        runpy.run_path(str(FOLDER / script), run_name="__main__")


def test_benchmarks_of_the_table_exist():
    scripts = re.findall(r"`(benchmarks/\w+\.py)`", PROSE)
    assert len(BENCHMARKS) >= 2 and len(scripts) >= 10
    for script in scripts:
        assert (FOLDER / script).is_file(), script


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_guide():
    listed = PAGES[0].parent.joinpath("notebooks/guide/index.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.stem == "index" or re.search(rf"^{page.stem}$", listed, re.MULTILINE), page.stem


def test_the_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").split()) <= 900
