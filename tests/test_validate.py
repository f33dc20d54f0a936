"""`jaxqmix validate`: a healthy machine passes, and a planted fault fails its row with a reason."""

import copy

import jax
import numpy as np
import pytest
from rich.console import Console as Terminal

from jaxqmix import cli, validate
from jaxqmix.compilation import jit
from jaxqmix.types import replace

CHECKS = {check.name: check for check in validate.CHECKS}


@pytest.fixture(scope="module", name="parts")
def parts_fixture():
    """The healthy parts; what the first test compiles serves all others."""
    return validate.Parts()


def one_run(monkeypatch, parts, checks=validate.CHECKS):
    """Exit code of a run of the checks, and what it prints."""
    monkeypatch.setattr(validate, "Parts", lambda: parts)
    terminal = Terminal(record=True, width=300)
    return validate.validate(checks, terminal), terminal.export_text()


def test_a_healthy_machine_passes(monkeypatch, parts):
    code, text = one_run(monkeypatch, parts)
    assert (code, text.count("pass ")) == (0, 11), text
    assert "all 11 checks passed" in text


def wrong_product(parts):
    parts.compiled = lambda function: lambda *arguments: 1.01 * function(*arguments)


def endless(parts):
    def step(*arguments):
        state, timestep = healthy(*arguments)
        return state, replace(timestep, truncated=np.bool_(False), terminated=np.bool_(False))

    healthy, parts.step = parts.step, step


def windy(parts):
    def step(*arguments):
        state, timestep = healthy(*arguments)
        return replace(state, position=state.position + 300.0), timestep

    healthy, parts.step = parts.step, step


def stale_average(parts):
    def begin(seed=0):
        state = healthy(seed)
        average = jax.tree.map(lambda leaf: leaf * 0.5, state.learner.ema)
        return replace(state, learner=replace(state.learner, ema=average))

    healthy, parts.begin = parts.begin, begin


def idle_learner(parts):
    """The optimiser's changes are forgotten."""
    parts.online = spoilt(
        parts.online,
        lambda before, after, metrics: (
            replace(after, learner=replace(after.learner, parameters=before.learner.parameters)),
            metrics,
        ),
    )


def spoilt(trainer, spoil):
    """A trainer whose iterations are spoilt by `spoil(before, after, metrics)`."""

    def iterate(state, iterations):
        before = jax.device_get(state)
        after, metrics = trainer.iterate(state, iterations)
        state, metrics = spoil(before, after, metrics)
        return trainer.place(jax.device_get(state)), metrics

    return replace(trainer, iterate=iterate)


def leaking_store(parts):
    def learn(seed, learned, store, sequences):
        after, _, metrics = healthy(seed, learned, store, sequences)
        return after, store, metrics

    healthy, parts.learn = parts.learn, learn


def eager_replay(parts):
    def learn(seed, learned, store, sequences):
        after, store, metrics = healthy(seed, learned, store, sequences)
        parameters = jax.tree.map(lambda leaf: leaf + 1, after.parameters)
        return replace(after, parameters=parameters), store, metrics

    healthy, parts.learn = parts.learn, learn


def swapped_axes(parts):
    learner = parts.online.learner

    def agent(*arguments):
        values, hidden_state = learner.agent(*arguments)
        return values.swapaxes(-1, -2), hidden_state

    parts.online = replace(parts.online, learner=replace(learner, agent=agent))


def forgetful_save(parts):
    def save(run, state):
        optimiser = jax.tree.map(lambda leaf: leaf * 0 + 1, state.learner.optimiser)
        healthy(run, replace(state, learner=replace(state.learner, optimiser=optimiser)))

    healthy, parts.save = parts.save, save


def no_save(parts):
    def save(run, state):
        raise OSError(28, "No space left on device")

    parts.save = save


def no_episodes(parts):
    parts.online = spoilt(
        parts.online,
        lambda before, after, metrics: (after, replace(metrics, ended=before.metrics.ended)),
    )


def open_door(parts):
    def receive(server, updates, weight, arrived):
        server, _, verdicts = healthy(server, updates, weight, arrived)
        return server, arrived, verdicts

    healthy, parts.receive = parts.receive, receive


def lazy_server(parts):
    def receive(server, *sent):
        _, admitted, verdicts = healthy(server, *sent)
        return server, admitted, verdicts

    healthy, parts.receive = parts.receive, receive


def strict_door(parts):
    def receive(server, updates, weight, arrived):
        return healthy(server, updates, np.where(np.arange(len(weight)) == 0, -1, weight), arrived)

    healthy, parts.receive = parts.receive, receive


def wrong_move(parts):
    def compiled(function):
        if function.__name__ != "move":
            return jit(function)
        return lambda *arguments: jax.tree.map(lambda leaf: leaf * 1.01, function(*arguments))

    parts.compiled = compiled


def random_noise(parts):
    generator = np.random.default_rng(0)

    def spoil(before, after, metrics):
        noise = 1e-6 * generator.normal()
        parameters = jax.tree.map(lambda leaf: leaf + noise, after.learner.parameters)
        return replace(after, learner=replace(after.learner, parameters=parameters)), metrics

    parts.online = spoilt(parts.online, spoil)


def deaf_seed(parts):
    healthy = parts.begin
    parts.begin = lambda seed=0: healthy(0)


@pytest.mark.parametrize(
    ("plant", "row", "words"),
    [
        (wrong_product, "device", "matrix product comes out wrong"),
        (endless, "environment", "goes on after its time limit of 20"),
        (windy, "environment", "left the city in step 1"),
        (stale_average, "agent initialisation", "EMA is not a copy"),
        (idle_learner, "online training step", "weights did not change"),
        (leaking_store, "replay training step", "holds 0 sequences after 1 rollouts of 8"),
        (eager_replay, "replay training step", "before the store was warm"),
        (swapped_axes, "tensor shapes", "has shape (6, 8, 7, 2) and should have (6, 8, 2, 7)"),
        (forgetful_save, "save and load", "learner comes back changed"),
        (no_save, "save and load", "No space left on device"),
        (no_episodes, "mini training loop", "only 0 episodes ended"),
        (open_door, "federated round", "an update of NaN was let in"),
        (strict_door, "federated round", "honest site's update was turned away"),
        (lazy_server, "federated round", "is off the median of the sites by"),
        (wrong_move, "jit against eager", "move: compiled and eager differ by 1"),
        (random_noise, "determinism", "same seed gives weights that differ by"),
        (deaf_seed, "determinism", "two seeds give the same run"),
    ],
)
def test_a_fault_fails_its_row(parts, plant, row, words):
    broken = copy.copy(parts)
    plant(broken)
    outcome = next(validate.outcomes((CHECKS[row],), broken))
    assert not outcome.passed
    assert words in outcome.text


def test_a_gpu_left_idle_is_noticed(parts, monkeypatch, tmp_path):
    def outcome():
        return next(validate.outcomes((CHECKS["device"],), parts))

    cpu = type("Cpu", (), {"platform": "cpu", "device_kind": "cpu"})
    monkeypatch.setattr(jax, "devices", lambda: [cpu])
    (tmp_path / "version").touch()
    monkeypatch.setattr(validate, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert outcome().text == "this machine has an NVIDIA GPU, but JAX runs on the CPU"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert outcome().passed


def test_only_the_broken_row_fails(monkeypatch, parts):
    """The rest runs on; reason and fix are shown; the exit code is 1."""
    broken = copy.copy(parts)
    swapped_axes(broken)
    names = ("device", "tensor shapes", "replay training step")
    code, text = one_run(monkeypatch, broken, tuple(CHECKS[name] for name in names))
    assert (code, text.count("pass "), text.count("fail ")) == (1, 2, 1)
    assert "fix: " + CHECKS["tensor shapes"].fix in text
    assert "1 of 3 checks failed" in text


def test_arguments_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", "quick"])
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err == "jaxqmix: argument = quick is not allowed: validate takes none\n"
    )
