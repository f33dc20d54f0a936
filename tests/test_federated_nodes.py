"""Sites and a server in processes of their own: the same rules as in the simulation."""

from __future__ import annotations

import ast
import dataclasses
import tomllib
from pathlib import Path

import federated_probes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqmix
from jaxqmix import checkpoints, cli
from jaxqmix.config import ConfigError, to_dict
from jaxqmix.federated import door, nodes, privacy
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.nodes import (
    Reply,
    ServerNode,
    SiteNode,
    as_text,
    from_text,
    write_app,
)
from jaxqmix.federated.rounds import make_program
from jaxqmix.presets import preset
from jaxqmix.validate import MISSION

TINY = dataclasses.replace(MISSION, env=dataclasses.replace(MISSION.env, horizon=10))
TWO = FederationConfig(
    sites=2, per_round=2, minimum=1, rounds=3, local_env_steps=40, compression="top-k"
)


@pytest.fixture(autouse=True)
def known_sites(monkeypatch):
    federated_probes.use(monkeypatch)


def reply(node, arrays, metrics):
    return Reply(str(node), arrays, metrics["env_steps"], metrics["site"])


def test_settings_travel_as_text():
    assert from_text(as_text(TINY, TWO)) == (TINY, TWO)


def test_an_app_holds_the_settings(tmp_path, capsys):
    words = "federate quick --rounds 7 --local-env-steps 900 --env.drones 3"
    run, app = tmp_path / "it's here", tmp_path / "app"
    assert cli.run([*words.split(), "--flower", str(app), "--out", str(run)]) == 0
    assert str(run) in capsys.readouterr().out and not run.exists()
    held = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config, federation = from_text(held["settings"])
    assert config == preset("quick", **{"env.drones": 3}) and held["out"] == str(run)
    assert federation == FederationConfig(rounds=7, local_env_steps=900)
    # Written anew, but never over another project's.
    assert cli.run([*words.split(), "--flower", str(app), "--out", str(run)]) == 0
    (app / "pyproject.toml").write_text('[project]\nname = "precious"\n')
    with pytest.raises(ConfigError, match=r"flower = .* is another project's"):
        cli.run([*words.split(), "--flower", str(app), "--out", str(run)])
    assert "precious" in (app / "pyproject.toml").read_text()


def test_a_round_that_diverged_leaves_no_residual(tmp_path):
    node = SiteNode(TINY, TWO, 0, tmp_path)
    node.train(ServerNode(TINY, TWO).weights, 0)
    state, residual = node._load(1)
    assert residual.any()
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), node.like)
    found = node._train(jax.random.key(0), state, residual, broken, jnp.int32(1), node._domain,
                        node._work)  # fmt: skip
    np.testing.assert_array_equal(found[1], residual)


def test_two_nodes_equal_the_simulation(tmp_path):
    server = ServerNode(TINY, TWO)
    program = make_program(TINY, TWO, server.sites)
    state = program.init(TINY.training.seed)
    for a, b in zip(jax.tree.leaves(state.server.weights), jax.tree.leaves(server.server.weights),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-7)
    sites = [SiteNode(TINY, TWO, number, tmp_path) for number in range(2)]
    for rounds in range(2):
        if rounds == 1:  # killed and restarted: it goes on from its file
            sites[1] = SiteNode(TINY, TWO, 1, tmp_path)
        sent = [node.train(server.weights, rounds) for node in sites]
        # The second node answers first.
        report = server.aggregate([reply(n, *sent[n]) for n in (1, 0)])
        assert report["admitted"] == ["0", "1"] and report["aggregated"]
        state, _ = program.round(state)
    for a, b in zip(jax.tree.leaves(state.server.weights), jax.tree.leaves(server.server.weights),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)

    before = server.weights
    arrays, metrics = sent[0]
    name = next(name for name, array in arrays.items() if array.dtype == np.float32)
    hostile = {
        f"{name} is missing": {n: a for n, a in arrays.items() if n != name},
        "more is not known here": arrays | {"more": np.zeros(1, np.float32)},
        f"{name} has type float64": arrays | {name: arrays[name].astype(np.float64)},
        f"{name} has shape (1, 2, 3)": arrays | {name: np.zeros((1, 2, 3), arrays[name].dtype)},
        f"{name} holds infinite": arrays | {name: np.full_like(arrays[name], np.nan)},
    }
    for reason, arrays in hostile.items():
        report = server.aggregate([reply("bad", arrays, metrics)])
        assert set(report["refused"]) == {"bad"} and not report["aggregated"]
        assert report["refused"]["bad"].startswith(reason)
    report = server.aggregate([reply("liar", sent[0][0], metrics | {"env_steps": float("nan")})])
    assert "claims nan env steps" in report["refused"]["liar"]
    assert server.aggregate([])["aggregated"] is False
    for part, array in server.weights.items():
        np.testing.assert_array_equal(array, before[part])
    server.save(tmp_path / "run")
    (step,) = checkpoints.steps_of(tmp_path / "run", "final")
    about = checkpoints.read_about(tmp_path / "run" / "checkpoints" / "final" / str(step))
    assert step == server.rounds and about["config"]["env"] == to_dict(TINY)["env"]


def test_a_site_goes_on_in_its_own_federation_only(tmp_path):
    """A second federation in the same folder, of these settings or of others, begins anew."""
    weights = ServerNode(TINY, TWO).weights
    first = [SiteNode(TINY, TWO, 0, tmp_path).train(weights, rounds) for rounds in range(2)]
    again = SiteNode(TINY, TWO, 0, tmp_path)
    for rounds, (arrays, _) in enumerate(first):
        for name, array in again.train(weights, rounds)[0].items():
            np.testing.assert_array_equal(array, arrays[name])
    seeded = TINY.replace(**{"training.seed": 1})
    other = SiteNode(seeded, TWO, 0, tmp_path).train(weights, 5)[0]
    anew = SiteNode(seeded, TWO, 0, tmp_path / "new").train(weights, 5)[0]
    for name, array in other.items():
        np.testing.assert_array_equal(array, anew[name])


@pytest.fixture(name="accountant")
def known_epsilon(monkeypatch):
    """Every run spends 2; the real accountant is an extra."""
    for module in (nodes, privacy):
        monkeypatch.setattr(module, "epsilon_spent", lambda *_: 2.0)


def test_the_noise_of_privacy_is_not_the_seed_s(accountant):
    """Sites know the seed; two servers of one seed add different noise."""
    private = dataclasses.replace(TWO, noise=1.0, compression="none")
    moved = []
    for _ in range(2):
        server = ServerNode(TINY, private)
        message = door.leaves_by_name(server._message)
        zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in message.items()}
        before = server.weights
        report = server.aggregate([Reply(str(n), zeros, 40.0, n) for n in range(2)])
        moved.append([server.weights[name] - before[name] for name in before])
    assert report["epsilon"] == 2 and report["aggregated"], report
    assert all(not np.allclose(a, b) for a, b in zip(*moved, strict=True) if a.size > 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregate": "fedasync"}, "aggregate = fedasync is not allowed"),
        ({"dropout": 0.3}, "dropout = 0.3 is not allowed"),
        ({"attackers": 1}, "attackers = 1 is not allowed"),
        ({"epsilon": 1.0, "noise": 0.5, "compression": "none"}, "epsilon = 1.0 is not allowed"),
    ],
)
def test_what_a_network_cannot_carry_out_is_refused(changes, message, tmp_path, accountant):
    with pytest.raises(ConfigError, match=message):
        write_app(tmp_path / "app", TINY, dataclasses.replace(TWO, **changes), tmp_path / "run")
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize("words", ["--resume", "--personalise 100"])
def test_an_app_flies_nothing(words, tmp_path):
    with pytest.raises(ConfigError, match="with --flower nothing is flown here"):
        cli.run(["federate", "quick", *words.split(), "--flower", str(tmp_path / "app")])


def test_only_one_file_imports_flower():
    package = Path(jaxqmix.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {path.name for name in names if name.split(".")[0] == "flwr"}
    assert found <= {"flower.py"}
