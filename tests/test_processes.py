"""Several processes train one run: real ones, over loopback, with a time limit."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import quick_options
from training_programs import TINY

from jaxqmix import cli
from jaxqmix.checkpoints import load, steps_of
from jaxqmix.commands.arguments import Place, find_place
from jaxqmix.config import ConfigError, setting_names
from jaxqmix.hyperparameters import value_of
from jaxqmix.metrics import read
from jaxqmix.provenance import read_journal
from jaxqmix.runner import train

SECONDS = 400
"""After which processes hang, on a busy machine too."""
PROGRAM = """
import sys
from jaxqmix import cli, compilation, runner
compilation._CPU_OPTIONS.update(eval(sys.argv[1]))
{prelude}
cli.main(sys.argv[2:])
"""
STOPPED = """
import os, signal
if "1" == os.environ.get("JAXQMIX_TEST_PROCESS"):
    agree, rounds = runner.agree, iter(range(10**6))
    def stopping(value):
        if next(rounds) == 2:
            signal.raise_signal(signal.SIGINT)
        return agree(value)
    runner.agree = stopping
"""
"""Ctrl-C in the second process, soon after the beginning."""
LONG = TINY.replace(**{"training.env_steps": 40 * 2000})


def words_of(config, run):
    """The command that trains a config."""
    names = [name for name in setting_names(config) if name not in ("preset", "scale", "world")]
    words = []
    for name in names:
        value = value_of(config, name)
        if value is None or (isinstance(value, tuple) and not value):
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return ["train", "quick", "--scale", "cpu", *words, "--out", str(run)]


def begin(config, run, *more, each=((), ()), prelude=""):
    """Two processes that train it, each with words of its own; `prelude` runs in both before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUM_CPU")}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(prelude=prelude), repr(quick_options()),
             *words_of(config, run), "--coordinator", address, "--processes", "2",
             "--process", str(number), *more, *each[number]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment | {"JAXQMIX_TEST_PROCESS": str(number)},
        )
        for number in range(2)
    ]  # fmt: skip


def ended(processes):
    """Exit codes, and what the processes said."""
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def wait_for(condition, processes):
    """Waits until something holds; fails when the processes end before, or it takes too long."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert all(process.poll() is None for process in processes), ended(processes)
        assert time.monotonic() < end
        time.sleep(0.1)


def timeless(run):
    """A run's reports without its speed."""
    return [{k: v for k, v in r.items() if "per_second" not in k} for r in read(run)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that two processes trained, and what they said."""
    run = tmp_path_factory.mktemp("two") / "run"
    codes, said = ended(begin(TINY, run))
    assert codes == [0, 0], said
    return run, said


def test_two_processes_train_as_two_devices_do(trained, tmp_path):
    """Up to rounding: the same weights and reports; and the second process writes nothing."""
    run, said = trained
    assert jax.local_device_count() == 2
    train(TINY.replace(preset="quick"), tmp_path / "one")
    for one, two in zip(
        *(jax.tree.leaves(load(r)[1]) for r in (tmp_path / "one", run)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
    alone, both = timeless(tmp_path / "one"), timeless(run)
    assert [report["kind"] for report in alone] == [report["kind"] for report in both]
    assert both[-1]["return"] == pytest.approx(alone[-1]["return"], abs=1e-3)
    assert (run / "replay.gif").is_file() and len(read_journal(run / "run.json")) == 1
    assert "checkpoints, metrics, curves.png and replay.gif" in said[0]
    silent = ("Gloo", "joining the others")
    assert all(any(word in line for word in silent) for line in said[1].splitlines())


def test_a_run_goes_on_bit_for_bit(trained, tmp_path):
    """Stopped early and resumed by two processes, it ends as the one that was never stopped."""
    run = tmp_path / "run"
    codes, said = ended(begin(TINY, run, prelude=STOPPED))
    assert codes == [0, 0] and "stopped and saved" in said[0], said
    assert steps_of(run, "latest")[-1] < TINY.iterations and not steps_of(run, "final")
    codes, said = ended(begin(TINY, run, "--resume"))
    assert codes == [0, 0], said
    for one, two in zip(*(jax.tree.leaves(load(r)[1]) for r in (trained[0], run)), strict=True):
        np.testing.assert_array_equal(one, two)
    assert timeless(trained[0]) == timeless(run)


def test_ctrl_c_in_one_ends_both_with_a_checkpoint(tmp_path):
    """And it goes on from there; where one is killed then, the other ends in one line."""
    run = tmp_path / "run"
    processes = begin(LONG, run)
    wait_for(lambda: steps_of(run, "latest"), processes)
    processes[1].send_signal(signal.SIGINT)
    codes, said = ended(processes)
    assert codes == [0, 0] and "stopped and saved" in said[0], said
    assert steps_of(run, "latest") and not steps_of(run, "final")
    processes = begin(LONG, run, "--resume")
    saved = steps_of(run, "latest")
    wait_for(lambda: steps_of(run, "latest") != saved, processes)
    processes[1].kill()
    codes, said = ended(processes)
    assert codes == [1, -signal.SIGKILL], said
    assert "process 0 of this run lost another one" in said[0].splitlines()[-1]
    assert "Traceback" not in said[0]


def test_what_the_first_refuses_ends_all(trained):
    run, _ = trained
    codes, said = ended(begin(TINY, run))
    assert codes == [2, 2], said
    assert "it is not empty; add --resume" in said[0]
    assert "process 0 of this run does not begin" in said[1]


def test_processes_of_different_runs_are_refused(tmp_path):
    """Their weights would be summed up all the same."""
    each = (), ("--learner.gamma", "0.5")
    codes, said = ended(begin(TINY, tmp_path / "run", each=each))
    assert codes == [2, 2], said
    assert all("each must be begun with the same settings" in text for text in said)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((), {}, None),
        (("a:1", 2, 1), {}, Place("a:1", 2, 1)),
        (("a:1", "1", "0"), {}, None),
        ((), {"JAX_COORDINATOR_ADDRESS": "[::1]:5", "JAX_NUM_PROCESSES": "3",
              "JAX_PROCESS_ID": "0"}, Place("[::1]:5", 3, 0)),
        ((None, None, 1), {"JAX_COORDINATOR_ADDRESS": "a:5", "JAX_NUM_PROCESSES": "3",
                           "JAX_PROCESS_ID": "0"}, Place("a:5", 3, 1)),
        (("slurm",), {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2",
                      "SLURM_STEP_NODELIST": "n[1-2]"}, Place(None, 4, 2)),
        (("slurm",), {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0",
                      "SLURM_STEP_NODELIST": "n1"}, None),
        ((), {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, None),
    ],
)  # fmt: skip
def test_the_place_of_a_process(given, environment, expected):
    assert find_place(*given, environment=environment) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("a:1", None, None), "processes = None"),
        ((None, 2, 0), "coordinator = None"),
        (("a", 2, 0), "must be HOST:PORT"),
        (("a:65536", 2, 0), "must be HOST:PORT"),
        (("slurm",), "coordinator = slurm"),
        (("a:1", "x", 0), "processes = x is not allowed: must be a whole number"),
        (("a:1", 0, 0), "processes = 0"),
        (("a:1", 2, 2), "process = 2 is not allowed: must be a number from 0 to 1"),
    ],
)
def test_half_a_place_is_refused(given, words):
    with pytest.raises(ConfigError) as error:
        find_place(*given, environment={})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_seeds_are_trained_by_one_process(monkeypatch, capsys):
    monkeypatch.setattr("jaxqmix.processes.join", lambda *_: None)
    monkeypatch.setattr("jaxqmix.commands.train.prepare_jax", lambda: None)
    words = ["--coordinator", "a:1", "--processes", "2", "--process", "0", "--seeds", "2"]
    with pytest.raises(SystemExit):
        cli.main(["train", "quick", "--scale", "cpu", *words])
    assert "processes = 2 is not allowed: one process trains the runs of --seeds" in (
        capsys.readouterr().err
    )


IN_FLIGHT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(jax.devices(), ("x",))
add = jax.jit(jax.shard_map(lambda x: x + jax.lax.psum(x.sum(), "x"), mesh=mesh,
                            in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x")))
start = NamedSharding(mesh, PartitionSpec("x"))
values = [jax.make_array_from_callback((4,), start, lambda i: __import__("numpy").ones(4)[i])
          for _ in range(4)]
for _ in range(200):
    values = [add(value) * 0.1 for value in values]
jax.block_until_ready(values)
print("done", flush=True)
__import__("os")._exit(0)
"""


@pytest.mark.xfail(
    tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12),
    reason="hangs for ever with jax 0.10 and 0.11",
    run=False,
)
def test_several_programs_in_flight_with_two_devices_each():
    """The canary for why a process has one device on CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IN_FLIGHT, address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=40)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("done" in text for text in said)
