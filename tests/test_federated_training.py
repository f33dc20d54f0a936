"""A federation from beginning to end: training, resuming, and the folders that it leaves."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxqmix import checkpoints, cli, compilation
from jaxqmix.config import ConfigError
from jaxqmix.federated import evaluate
from jaxqmix.federated import run as federated
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.local import begin_round
from jaxqmix.federated.pictures import ABSENT, ADMITTED, AWAY, CLIPPED, REFUSED, took_part, traffic
from jaxqmix.types import replace
from jaxqmix.validate import MISSION

TINY = dataclasses.replace(MISSION, env=dataclasses.replace(MISSION.env, horizon=10))
FEDERATION = FederationConfig(
    sites=4,
    per_round=3,
    minimum=1,
    rounds=4,
    local_env_steps=80,
    aggregate="fedprox",
    compression="int8",
    dropout=0.2,
    attackers=1,
    attack="nan",
    strangers=1,
    evaluate_every=2,
    checkpoint_every=2,
    episodes=2,
    final_episodes=3,
)
"""Of everything a little: a pull to the global weights, absent sites, a hostile one."""


def tuned(state, start, domain, work, clock, group):
    """In place of training at the end, which takes long to compile: another policy."""
    state = begin_round(state, start, clock, group)
    average = jax.tree.map(lambda leaf: 1.1 * leaf, state.learner.ema)
    return (replace(state, learner=replace(state.learner, ema=average)),)


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly_and_once():
    """Little runs, much compiles."""
    compiled = {}

    def once(programs, notice):
        missing = {name: parts for name, parts in programs.items() if name not in compiled}
        new, effort = compilation.compile_ahead(missing, notice)
        compiled.update(new)
        return compiled, effort

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated, "compile_ahead", once)
        patch.setattr(evaluate, "local_training", tuned)
        yield


@pytest.fixture(scope="module", name="whole")
def trained_without_a_stop(tmp_path_factory):
    """The folder of a federation."""
    folder = tmp_path_factory.mktemp("federated") / "whole"
    federated.federate(TINY, FEDERATION, folder, personalise=40)
    return folder


def leaves(folder):
    """Checksums of every array of the final checkpoint."""
    place = folder / "checkpoints" / "final" / str(FEDERATION.rounds)
    return checkpoints.read_about(place)["leaves"]


def test_it_writes_what_happened(whole):
    rounds = federated.read_rounds(whole)
    assert [line["round"] for line in rounds] == [1, 2, 3, 4]
    for line in rounds:
        assert len(line["chosen"]) == 3
        hostile = {"03"} & set(line["chosen"]) - set(line["away"])
        assert set(line["refused"]["not finite"]) == hostile
        arrived = len(line["chosen"]) - len(line["away"])
        assert line["bytes_up"] < line["bytes_down"] / 3 or not arrived
    assert any(line["refused"]["not finite"] for line in rounds)
    assert any(line["away"] for line in rounds)
    final = json.loads((whole / "evaluation.json").read_text())
    assert final["episodes"] == 12 and 0 <= final["coverage_of_strangers"] <= 1
    assert set(final["t90_by_site"]) == {"00", "01", "02", "03", "stranger-0"}
    assert (whole / "federation.png").stat().st_size > 10_000
    weights = jax.tree.leaves(checkpoints.load(whole)[1])
    assert all(np.isfinite(leaf).all() for leaf in weights)


def test_learning_rates_follow_the_clock_of_the_federation(whole):
    place = whole / "checkpoints" / "latest" / "4" / "state"
    state = ocp.PyTreeCheckpointer().restore(place)["groups"][0]
    rounds, sites = federated.read_rounds(whole), json.loads((whole / "sites.json").read_text())
    optimiser = state["learner"]["optimiser"][-1][-1]["count"]
    for number, site in enumerate(sites):
        flown = [r["round"] for r in rounds if site["name"] in set(r["chosen"]) - set(r["away"])]
        # Two iterations a round, of two gradient steps each.
        work = max(1, round(2 * site["work"]))
        assert optimiser[number] == 2 * (2 * (flown[-1] - 1) + work)
        assert state["iterations"][number] == 2 * (flown[-1] - 1) + work


def test_a_resumed_federation_is_equal_bit_for_bit(whole, tmp_path):
    folder, done = tmp_path / "resumed", []
    run = federated.FederatedRun(TINY, FEDERATION, folder, federated.Callback())
    # Stopped after round 3; the last checkpoint is the one of the stop.
    assert run.train(lambda: done.append(1) or len(done) > 3) is None
    assert len(federated.read_rounds(folder)) == 3
    federated.federate(TINY, FEDERATION, folder, resume=True)
    assert leaves(folder) == leaves(whole)
    assert federated.read_rounds(folder) == federated.read_rounds(whole)
    with pytest.raises(ConfigError, match="aggregate = fedavg is not allowed"):
        other = dataclasses.replace(FEDERATION, aggregate="fedavg")
        federated.federate(TINY, other, folder, resume=True)
    # Without fine-tuning, a site's policy is the global one.
    own, shared = (checkpoints.load(place)[1] for place in (folder / "sites" / "01", folder))
    jax.tree.map(np.testing.assert_array_equal, own, shared)


def test_its_folders_are_ordinary_runs(whole, monkeypatch):
    own, shared = checkpoints.load(whole / "sites" / "01"), checkpoints.load(whole)
    assert own[0].domain != shared[0].domain and own[0].env == shared[0].env == TINY.env
    for one, other in zip(jax.tree.leaves(own[1]), jax.tree.leaves(shared[1]), strict=True):
        np.testing.assert_allclose(one, 1.1 * other, rtol=1e-6)
    personalised = json.loads((whole / "personalised.json").read_text())
    assert set(personalised["t90_by_site"]) == {"00", "01", "02", "03"}

    def flies(name, *_):
        raise ConfigError(f"flies {name}")

    monkeypatch.setattr("jaxqmix.commands.evaluate.find_policy", flies)
    for site, expected in (
        ("1", "flies .*sites/01"),
        ("02", "flies .*sites/02"),
        ("9", "site = 9 is not allowed: must be one of 00, 01"),
    ):
        with pytest.raises(ConfigError, match=expected):
            cli.run(["evaluate", str(whole), "--site", site])
    with pytest.raises(ConfigError, match="is no federation's folder"):
        cli.run(["evaluate", str(whole / "sites" / "00"), "--site", "1"])


def test_bad_settings_leave_no_folder(tmp_path):
    out = tmp_path / "out"
    for words, message in (
        ("quick --per-round 20", "per_round = 20 is not allowed"),
        ("quick --population mars", "population = mars is not allowed"),
        ("quick --sites 4", "per_round = 5 is not allowed: must be at most sites = 4"),
        ("quick --aggregate krum --hostile 2", "krum needs at least 7"),
        (
            "quick --training.env-steps 9000",
            "training.env_steps = 9000 is not allowed: the budget of",
        ),
        ("quick --aggregate best", "aggregate = best is not allowed"),
        ("quick --personalise -1", "personalise = -1 is not allowed"),
        ("--sites 4", "preset is missing"),
        ("quick full", "give one preset"),
    ):
        with pytest.raises(ConfigError, match=message):
            cli.run(["federate", *words.split(), "--out", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--sites 4", "per_round = 5 is not allowed: must be at most sites = 4"),
        ("--aggregate best", "--aggregate = best is not allowed: must be one of fedadam, "),
        ("--aggregate krum --hostile 2", "hostile = 2 is not allowed: krum needs at least 7 "),
    ],
)
def test_bad_settings_get_one_line(words, error, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["federate", "quick", *words.split()])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"jaxqmix: {error}") and said.count("\n") == 1


ROUNDS = [
    {"chosen": ["a", "b"], "away": [], "clipped": ["b"], "refused": {"not finite": ["a"]},
     "bytes_up": 2000, "bytes_down": 8000, "epsilon_spent": None},
    {"chosen": ["b", "c"], "away": ["c"], "clipped": [], "refused": {}, "bytes_up": 1000,
     "bytes_down": 4000, "epsilon_spent": 3.0},
]  # fmt: skip


def test_what_became_of_the_sites():
    grid = took_part(ROUNDS, ["a", "b", "c"])
    assert grid.tolist() == [[REFUSED, ABSENT], [CLIPPED, ADMITTED], [ABSENT, AWAY]]
    rows = dict(traffic(ROUNDS, FederationConfig()))
    assert rows["updates sent"] == "3" and rows["turned away"] == "1"
    assert rows["one update"] == "1.0 kB" and rows["down in all"] == "12.0 kB"
    assert rows["epsilon, delta 1e-05"] == "3.0"
