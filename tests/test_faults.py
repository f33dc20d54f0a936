"""What may go wrong around a run: other processes, signals, readers that leave, odd places.

The run itself is a stand-in that compiles nothing; benchmarks/chaos.py does the same to whole runs.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify

from jaxqmix import checkpoints, cli, folders, runner
from jaxqmix.commands.common import prepare_jax
from jaxqmix.compilation import cache_folder
from jaxqmix.config import ConfigError, EnvConfig, NotFiniteError
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.folders import make_folder
from jaxqmix.loading import make
from jaxqmix.locking import LOCK
from jaxqmix.metrics import MetricsWriter, local_path
from jaxqmix.runner import Callback, train
from jaxqmix.training import make_trainer
from jaxqmix.types import HOVER
from jaxqmix.validate import MISSION


class StandIn:
    """A run that reports three steps, and stops when asked to."""

    made = ()

    def __init__(self, configs, folders, callback, resume=False, wandb=None, env=None):
        (config,), (folder,) = configs, folders
        self.folder, self.callback, self.steps = folder, callback, 0
        StandIn.made = (*StandIn.made, self)
        make_folder(folder, config)

    def train(self, asked):
        """One line to the callback a step."""
        while self.steps < 3 and not asked():
            self.callback.on_advance(self.steps)
            self.steps += 1
        return [{"steps": self.steps}]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """`train` does all but training."""
    monkeypatch.setattr(runner, "Run", StandIn)
    monkeypatch.setattr(StandIn, "made", ())


def on_advance(action):
    """A callback that does something when training advances."""
    return type("Doing", (Callback,), {"on_advance": lambda self, step: action(step)})()


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    """Also while the first has only begun."""
    said = []

    def again(step):
        for resume in (False, True):
            with pytest.raises(ConfigError) as refusal:
                train(MISSION, tmp_path / "run", resume)
            said.append(str(refusal.value))

    assert train(MISSION, tmp_path / "run", callback=on_advance(again)) == {"steps": 3}
    assert "it is not empty" in said[0] and f"process {os.getpid()} on " in said[1]
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_run_that_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConfigError("memory = 9 GB is not allowed")

    monkeypatch.setattr(runner, "Run", refuse)
    with pytest.raises(ConfigError, match="memory"):
        train(MISSION, tmp_path / "a" / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_killed_before_it_began_leaves_the_folder_free(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (LOCK, ".config.json"):
        (tmp_path / "run" / name).touch()
    assert train(MISSION, tmp_path / "run")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_stop_a_run_that_trains(tmp_path, name):
    if not hasattr(signal, name):
        pytest.skip("no such signal")
    number = getattr(signal, name)
    before = signal.getsignal(number)
    callback = on_advance(lambda step: step == 1 and signal.raise_signal(number))
    assert train(MISSION, tmp_path / "run", callback=callback) == {"steps": 2}
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("error", [BrokenPipeError(), SystemExit(1), OSError(5, "I/O error")])
def test_a_reader_that_leaves_stops_a_run_as_if_asked(tmp_path, error):
    """`train ... | head`, or a terminal that was closed."""

    def leave(step):
        raise error

    with pytest.raises(BrokenPipeError):
        train(MISSION, tmp_path / "run", callback=on_advance(leave))
    assert StandIn.made[-1].steps == 1


def test_a_callback_that_cannot_write_ends_the_run_with_its_error(tmp_path):
    def write(step):
        (tmp_path / "missing" / "file").write_text("x")

    with pytest.raises(FileNotFoundError, match="missing"):
        train(MISSION, tmp_path / "run", callback=on_advance(write))
    assert StandIn.made[-1].steps == 1


def test_a_run_stays_where_it_began(tmp_path, monkeypatch):
    """Whatever becomes of the working directory."""
    monkeypatch.chdir(tmp_path)
    train(MISSION, "run", callback=on_advance(lambda step: os.chdir("/")))
    assert StandIn.made[-1].folder == tmp_path / "run"


@pytest.mark.parametrize(
    "place", ["gs://bucket/run", "s3://bucket/run", "https://a.b/c", "file:/a"]
)
def test_addresses_are_no_folders(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for out in (place, Path(place)):
        with pytest.raises(ConfigError, match=r"out = .* must be in this machine's file system"):
            train(MISSION, out)
    assert not list(tmp_path.iterdir())


def test_homes_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert local_path("out", "~/runs") == tmp_path / "runs"
    assert cli.expand_home("--out=~/runs") == f"--out={tmp_path}/runs"
    assert cli.expand_home("~") == str(tmp_path)
    for word in ("--out=a~b", "~user/x", "-3", "--seed=3"):
        assert cli.expand_home(word) == word


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="homes are found otherwise")
def test_a_cache_needs_no_home(monkeypatch, tmp_path):
    # What Python answers where nobody knows a home.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setenv("JAXQMIX_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "jaxqmix"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder().is_absolute() and cache_folder().name.startswith("jaxqmix-")
    monkeypatch.setenv("JAXQMIX_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_training_in_a_forked_process_is_refused(tmp_path):
    """It would hang."""
    jax.devices()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            train(MISSION, tmp_path / "run")
            answer = "trained"
        except ConfigError as error:
            answer = str(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert 'multiprocessing.get_context("spawn")' in os.read(reading, 1000).decode()
    assert train(MISSION, tmp_path / "run")


def test_strict_promotion_of_types_changes_nothing():
    """Whoever sets it for code of their own gets the same worlds, policies and programs."""
    key = jax.random.key(0)
    env = make(MISSION)
    trainer = make_trainer(MISSION)

    def shapes():
        state = jax.eval_shape(trainer.begin, trainer.seed_shape)
        agent = state.learner.ema["agent"]
        first = jax.eval_shape(lambda: env.reset(key, env.draw_params(key)))

        def act(agent, state, timestep):
            policy = trainer.policy(agent)
            return policy(key, state, timestep, policy.initial_hidden_state())

        actions = jax.eval_shape(act, agent, *first)[0]
        after = jax.eval_shape(
            lambda s, a: env.step(key, s, a, env.draw_params(key)), first[0], actions
        )
        trained = jax.eval_shape(trainer.iterate, state, jax.ShapeDtypeStruct((), np.int32))
        return first, actions, after, trained

    with jax.numpy_dtype_promotion("strict"):
        found = shapes()
    assert jax.tree.map(str, found) == jax.tree.map(str, shapes())


def test_64_bits_are_refused(tmp_path):
    """They would be other results."""
    with jax.enable_x64(True):
        with pytest.raises(ConfigError, match="jax_enable_x64 = True is not allowed"):
            train(MISSION, tmp_path / "run")
        with pytest.raises(ConfigError, match="jax_enable_x64 = True is not allowed"):
            UrbanGrid().reset(jax.random.key(0), None)


def ended(monkeypatch, capsys, error):
    """Exit code and message of a command that ends with an error."""

    def fail(_):
        raise error

    monkeypatch.setattr(cli, "run", fail)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train"])
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NotFiniteError("loss is not finite"), 1, "jaxqmix: loss is not finite\n"),
        (ConfigError("out = x"), 2, "jaxqmix: out = x\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "jaxqmix: [Errno 28] No space left on device\n",
        ),
        (OSError("a\nb"), 2, "jaxqmix: a\\nb\n"),
        (MemoryError(), 2, "jaxqmix: out of memory\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to\nallocate"),
            2,
            "jaxqmix: the device has too little memory: lower training.swarms, or "
            "evaluation.episodes\n",
        ),
        (KeyboardInterrupt(), 130, "\njaxqmix: stopped\n"),
    ],
)
def test_commands_end_in_one_line(monkeypatch, capsys, error, code, words):
    assert ended(monkeypatch, capsys, error) == (code, words)


def test_ctrl_c_once_more_while_leaving_does_no_harm(monkeypatch, capsys):
    """The first one is being answered: another would end that in a traceback."""
    heard = []
    monkeypatch.setattr(cli.signal, "signal", lambda *given: heard.append(given))

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", stop)
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert heard == [(signal.SIGINT, signal.SIG_IGN)]


def test_a_backend_that_is_not_there_gets_one_line(monkeypatch):
    def missing():
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", missing)
    with pytest.raises(
        ConfigError, match=r"JAX_PLATFORMS = cuda is not allowed: this machine has no such dev"
    ):
        prepare_jax()


def run_with(folder, best=None, lines=()):
    """As much of a run as finds the best return so far."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if best is not None:
        place = folder / "checkpoints" / "best" / "4"
        place.mkdir(parents=True)
        about = {"schema": checkpoints.SCHEMA, "step": 4, "config": {}, "notes": best}
        (place / "about.json").write_text(json.dumps(checkpoints.sealed(about)))
    run = object.__new__(RUN_FOLDER)
    run.folder, run.metrics = folder, MetricsWriter(folder, [], env_steps=0)
    run.metrics.kept = list(lines)
    return run._best_so_far()


RUN_FOLDER = folders.RunFolder


def test_the_best_return_lies_in_its_checkpoint(tmp_path):
    """The log may be lost; it is asked only where the checkpoint does not say."""
    lines = [{"kind": "evaluation", "env_steps": 0, "return": value} for value in (0.7, None, "x")]
    assert run_with(tmp_path / "a", {"best_return": 0.9}) == 0.9
    assert run_with(tmp_path / "b", {"best_return": 0.9}, lines) == 0.9
    assert run_with(tmp_path / "c", {}, lines) == 0.7
    assert run_with(tmp_path / "d", None, lines) == -math.inf
    assert run_with(tmp_path / "e", {}) == -math.inf


def test_files_are_written_whole_and_without_nan(tmp_path):
    path = tmp_path / "evaluation.json"
    folders.write_json(path, {"return": math.nan, "ci": [1.0, math.inf], "ok": True})
    assert json.loads(path.read_text()) == {"return": None, "ci": [1.0, None], "ok": True}
    assert [each.name for each in tmp_path.iterdir()] == ["evaluation.json"]


SMALL = UrbanGrid(EnvConfig(drones=2, city_width=160.0, city_length=120.0, horizon=5, neighbours=1))


def small_state():
    """Shapes of a state and of what else a step takes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(SMALL.draw_params, key)
    return key, jax.eval_shape(SMALL.reset, key, params)[0], params


@pytest.mark.parametrize("actions", [jnp.zeros(3, int), jnp.zeros(2), jnp.zeros((2, 1), int)])
def test_actions_of_another_kind_are_refused_at_the_door(actions):
    key, state, params = small_state()
    with pytest.raises(AssertionError, match=r"(?s)Chex.*(expected \(2\).*drones|float32)"):
        jax.eval_shape(SMALL.step, key, state, actions, params)


def test_unknown_actions_hover_and_are_told_where_asked():
    from jaxqmix.env.urban_grid import checked_actions

    given = jnp.array([99, 3]), jnp.array([-1, 6]), jnp.array([0, 7], jnp.uint8)
    found = [np.asarray(checked_actions(actions, SMALL.config)).tolist() for actions in given]
    assert found == [[HOVER, 3], [HOVER, 6], [0, HOVER]]
    check = checkify.checkify(
        jax.jit(lambda actions: checked_actions(actions, SMALL.config)), errors=checkify.user_checks
    )
    for actions, words in zip(given, (r"\[99 +3\]", r"\[-1 +6\]", r"\[0 7\]"), strict=True):
        with pytest.raises(checkify.JaxRuntimeError, match=rf"actions = {words} are not allowed"):
            check(actions)[0].throw()
    check(jnp.array([0, 6]))[0].throw()


def test_a_program_that_is_traced_again_is_the_same_and_is_found_in_the_cache():
    key, state, params = small_state()
    actions = jax.ShapeDtypeStruct((2,), jnp.int32)

    def program():
        def reward(*arguments):  # a new function, which is traced anew
            return SMALL.step(*arguments)[1].reward

        return jax.jit(reward).lower(key, state, actions, params).as_text()

    assert program() == program()


def load_chaos():
    """The benchmark that does the same to whole runs."""
    folder = str(Path(__file__).parent.parent / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("chaos")
    finally:
        sys.path.remove(folder)


CHAOS = load_chaos()


@settings(max_examples=150)
@given(st.lists(st.sampled_from(CHAOS.WORDS) | st.text(max_size=6), max_size=6))
def test_any_words_get_one_line_or_an_answer(words):
    """No traceback, whatever is typed; what would work is not done here."""
    CHAOS.try_words(words)


def test_an_extreme_world_trains_and_flies():
    """A hundred metres, one step, all of it by chance: figures are finite."""
    narrow = {"env.city_width": 80.0, "env.city_length": 200.0, "env.cell_size": 20.0}
    world = {"env.drones": 1, "env.no_fly_zones": 16, "env.patch": 31, "env.neighbours": 0}
    chance = {"env.sensing": "probabilistic", "domain.visibility": 0.05, "domain.packet_loss": 1.0}
    training = {"env.horizon": 1, "training.rollout": 1, "training.mode": "replay"}
    assert CHAOS.fly_world(narrow | world | chance | training | {"learner.network": "gru"})
