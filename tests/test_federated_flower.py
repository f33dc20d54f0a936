"""A SuperLink and two SuperNodes on this machine: the result is the simulation's.

Each task of a node is a fresh process that traces its program anew, so this takes minutes: it runs
where `JAXQMIX_TEST_FLOWER` is set and the extra `federated` is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxqmix import checkpoints
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.nodes import write_app
from jaxqmix.federated.rounds import make_program
from jaxqmix.federated.sites import find_sites
from jaxqmix.validate import MISSION

TINY = dataclasses.replace(MISSION, env=dataclasses.replace(MISSION.env, horizon=10))
TWO = FederationConfig(
    sites=2, per_round=2, minimum=1, rounds=3, local_env_steps=40, compression="top-k"
)
PATIENCE = 900
BIN = Path(sys.executable).parent

pytestmark = [
    pytest.mark.skipif("JAXQMIX_TEST_FLOWER" not in os.environ, reason="takes minutes"),
    pytest.mark.skipif(not shutil.which("flwr", path=str(BIN)), reason="without flwr"),
]


def free_ports(count):
    """Ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Network:
    """A SuperLink, and a SuperNode for each site."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, {}
        self.link, *self.ports = free_ports(3)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.link}"\ninsecure = true\n'
        )
        self.environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "JAXQMIX_CACHE": str(folder / "cache"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        self.start("link", "flower-superlink", "--insecure", "--port", str(self.link),
                   "--disable-runtime-dependency-installation")  # fmt: skip

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = subprocess.Popen(
            command, stdout=log, stderr=log, env=self.environment, start_new_session=True
        )

    def node(self, site):
        config = f'site={site} folder="{(self.folder / "sites").as_posix()}"'
        self.start(f"node{site}", "flower-supernode", "--insecure", "--superlink",
                   f"127.0.0.1:{self.link}", "--port", str(self.ports[site]),
                   "--node-config", config)  # fmt: skip

    def kill(self, name):
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):  # it is at its end
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def wait(self, name):
        assert self.processes[name].wait(PATIENCE) == 0, (self.folder / f"{name}.log").read_text()


@pytest.fixture(name="network")
def local_network(tmp_path):
    write_app(tmp_path / "app", TINY, TWO, tmp_path / "run")
    network = Network(tmp_path)
    time.sleep(8)
    yield network
    for name in list(network.processes):
        network.kill(name)


def rounds_of(folder):
    return [json.loads(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]


def test_two_nodes_equal_the_simulation(network, tmp_path):
    network.node(0)
    network.start("run", "flwr", "run", str(tmp_path / "app"), "here", "--stream")
    time.sleep(5)
    network.node(1)  # late
    network.wait("run")
    program = make_program(TINY, TWO, find_sites(TWO, TINY)[0])
    state = program.init(TINY.training.seed)
    for _ in range(TWO.rounds):
        state, _ = program.round(state)
    assert [len(line["admitted"]) for line in rounds_of(tmp_path)] == [2, 2, 2]
    policy = checkpoints.load(tmp_path / "run")[1]
    for a, b in zip(jax.tree.leaves(state.server.weights), jax.tree.leaves(policy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_a_killed_node_comes_back(network, tmp_path):
    for site in (0, 1):
        network.node(site)
    network.start("run", "flwr", "run", str(tmp_path / "app"), "here", "--stream")
    state, until = tmp_path / "sites" / "site-01.npz", time.monotonic() + PATIENCE
    while not state.exists():
        assert time.monotonic() < until
        time.sleep(1)
    time.sleep(20)  # into the second round
    network.kill("node1")
    network.node(1)
    network.wait("run")
    lines = rounds_of(tmp_path)
    assert [line["aggregated"] for line in lines] == [True] * 3
    assert len(lines[0]["admitted"]) == len(lines[2]["admitted"]) == 2
    assert lines[0]["admitted"] != lines[2]["admitted"]
