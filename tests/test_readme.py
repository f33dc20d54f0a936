"""The README's commands and Python run as they stand there, with tiny missions behind the names."""

import dataclasses
import re
import shlex
from pathlib import Path

import jax
import pytest

from jaxqmix import cli, compilation, presets
from jaxqmix.config import CheckpointConfig, EvaluationConfig
from jaxqmix.validate import MISSION

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for _, block in BLOCKS for line in block.splitlines() if line.startswith("jaxqmix ")
]
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
    # Little runs, much compiles.
    monkeypatch.setitem(compilation._CPU_OPTIONS, "xla_backend_optimization_level", 0)
    for name in presets.PRESETS:
        monkeypatch.setitem(presets.PRESETS, name, dataclasses.replace(TINY, preset=name))


def affordable(command: str) -> list[str]:
    """The command's arguments with a tiny budget."""
    arguments = shlex.split(command)[1:]
    for index, argument in enumerate(arguments[:-1]):
        if argument in BUDGETS:
            arguments[index + 1] = "80" if argument == "--env-steps" else "8"
    return arguments


def test_every_command_runs(capsys):
    assert {command.split()[1] for command in COMMANDS} >= {"train", "evaluate", "render", "plot"}
    for command in COMMANDS:
        assert cli.run(affordable(command)) == 0, command
    for file in ("report.json", "flights.npz", "swarm.html", "curves.png", "runs/quick/replay.gif"):
        assert Path(file).stat().st_size > 0


def test_commands_of_the_table_exist():
    named = set(re.findall(r"^\| `jaxqmix (\w+)", TEXT, flags=re.MULTILINE))
    assert named == set(cli.COMMANDS)


def test_python_runs():
    code = [block for language, block in BLOCKS if language == "python"]
    assert code
    names = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert names["actions"].shape == (2,)
    assert isinstance(names["actions"], jax.Array) and names["report"]["episodes"] == 64
