"""Tiny runs whose programs compile once, for the files of tests that train."""

import dataclasses
import functools
import signal
from typing import Any

import jax
import numpy as np
import pytest

from jaxqmix import compilation, runner
from jaxqmix import seeds as seeds_module
from jaxqmix.config import CheckpointConfig, EvaluationConfig
from jaxqmix.runner import Callback
from jaxqmix.training import Trainer, make_trainer
from jaxqmix.validate import MISSION

TINY = dataclasses.replace(
    MISSION,
    preset="tiny",
    evaluation=EvaluationConfig(every_episodes=8, episodes=4, final_episodes=4),
    checkpoint=CheckpointConfig(every_episodes=4),
)
REPLAY = TINY.replace(
    **{"training.mode": "replay", "learner.network": "gru", "learner.mixer": "iql"}
)


class Interrupt(Callback):
    """Presses Ctrl-C, or sends SIGTERM, after some rollouts."""

    def __init__(self, step: int, number: int):
        self.step, self.number, self.saved_at = step, number, None

    def on_advance(self, step: int) -> None:
        if step == self.step:
            signal.raise_signal(self.number)

    def on_stopped(self, step: int) -> None:
        self.saved_at = step


@dataclasses.dataclass(frozen=True)
class Compiled(Trainer):
    """A trainer of compiled programs; all runs and tests of a config share it."""

    programs: dict = dataclasses.field(default_factory=dict)
    state_shapes: Any = None

    def compiled(self, programs, notice=lambda names: None):
        """Like `compile_ahead`, but each program is compiled once."""
        new = {name: job for name, job in programs.items() if name not in self.programs}
        found, effort = compilation.compile_ahead(new, notice)
        self.programs.update(found)
        return {name: self.programs[name] for name in programs}, effort


def trainer_of(config, seeds=None):
    """The trainer of a config, with compiled programs; the same one at every call."""
    return compiled_trainer(config, seeds)


@functools.cache
def compiled_trainer(config, seeds):
    traced = make_trainer(config, seeds)
    kept = {item.name: getattr(traced, item.name) for item in dataclasses.fields(traced)}
    trainer = Compiled(**kept, state_shapes=traced.state_shapes)
    jobs = {
        "training": (traced.iterate, (trainer.state_shapes, jax.ShapeDtypeStruct((), np.int32))),
        "first state": (traced.begin, (traced.seed_shape,)),
    }
    programs, _ = trainer.compiled(jobs)
    return dataclasses.replace(
        trainer,
        begin=programs["first state"],
        iterate=lambda state, iterations: programs["training"](state, np.int32(iterations)),
    )


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    """Every run here takes the programs of its config, the one that resumes too."""

    def compiled(programs, notice):
        return trainers[programs["training"][0]].compiled(programs, notice)

    def make(config, seeds=None, env=None, values=None):
        if config not in (TINY, REPLAY) or values:
            return make_trainer(config, seeds, env, values=values)
        trainer = trainer_of(config, seeds)
        trainers[trainer.iterate] = trainer
        return trainer

    trainers = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "make_trainer", make)
        patch.setattr(runner, "compile_ahead", compiled)
        patch.setattr(seeds_module, "make_trainer", make)
        yield
