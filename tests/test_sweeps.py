"""Sweeps: runs that differ by numbers, side by side in one program."""

import dataclasses
import json
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from training_programs import TINY, Interrupt

import jaxqmix
from jaxqmix import cli, console
from jaxqmix.checkpoints import load
from jaxqmix.commands.arguments import swept_values
from jaxqmix.config import ConfigError, from_dict
from jaxqmix.hyperparameters import TRACED, bound, stacked, value_of
from jaxqmix.metrics import runs_in
from jaxqmix.render.curves import by_settings, load_runs
from jaxqmix.sweeps import swept_configs, train_sweep
from jaxqmix.training import make_trainer

OTHER = {
    "learner.gamma": 0.5,
    "learner.trace": 0.2,
    "learner.reward_scale": 2.0,
    "learner.learning_rate": 1e-2,
    "learner.learning_rate_end": 1.0,
    "learner.max_gradient_norm": 1e-3,
    "learner.average_decay": 0.0,
    "training.epsilon_start": 0.5,
    "training.epsilon_end": 0.9,
    "domain.building_density": 2.0,
    "domain.building_height": 0.5,
    "domain.wind_speed": (20.0, 30.0),
    "domain.turbulence": 8.0,
    "domain.visibility": 0.2,
    "domain.packet_loss": (0.5, 0.9),
    "domain.delay": 0.6,
    "domain.sensor_noise": 40.0,
    "domain.reward.area": 3.0,
    "domain.reward.bonus": 50.0,
    "domain.reward.perimeter": 2.0,
    "domain.reward.conflict": 900.0,
    "domain.reward.building_hit": 900.0,
    "domain.reward.violation": 900.0,
    "domain.reward.energy": 1.0,
}
"""A value of each that `TINY` has not."""
# So short a run needs weather, walls and teammates in its way for every term to count.
HARSH = TINY.replace(
    **{
        "env.right_of_way": False,
        "env.foresight": 0,
        "env.zone_foresight": 0,
        "domain.packet_loss": 0.2,
        "domain.delay": 0.3,
    }
)
SWEEP = {"learner.gamma": [0.9, 0.97], "domain.packet_loss": [0.0, (0.2, 0.4)]}
NAMES = ["gamma-0.9_packet_loss-0", "gamma-0.9_packet_loss-0.2-0.4",
         "gamma-0.97_packet_loss-0", "gamma-0.97_packet_loss-0.2-0.4"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished sweep."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, train_sweep(TINY, out, SWEEP)


def trained(config, iterations, seeds=None, values=None):
    """The learner and metrics after some iterations, on the host."""
    trainer = make_trainer(config, seeds, values=values)
    seed = config.training.seed if seeds is None else [config.training.seed] * seeds
    state, metrics = trainer.iterate(trainer.init(seed), iterations)
    return jax.device_get((state.learner, metrics))


def test_every_setting_counts_and_runs_equal_those_alone():
    """One program trains a run as it is, one with everything changed, and one for each change."""
    assert set(OTHER) == set(TRACED)
    assert all(value_of(HARSH, name) != value for name, value in OTHER.items())
    configs = [HARSH, HARSH.replace(**OTHER), *(HARSH.replace(**{n: v}) for n, v in OTHER.items())]
    together = trained(HARSH, 12, len(configs), stacked(configs))
    runs = [jax.tree.map(lambda leaf, k=k: leaf[k], together) for k in range(len(configs))]
    for config, found in zip(configs[:2], runs, strict=False):
        for one, other in zip(*map(jax.tree.leaves, (found, trained(config, 12))), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-2)
    same = [
        name
        for name, run in zip(OTHER, runs[2:], strict=True)
        if all(map(np.array_equal, *map(jax.tree.leaves, (run, runs[0]))))
    ]
    # What so short a run does not live to see; weights travel together.
    assert set(same) <= {f"domain.reward.{name}" for name in ("bonus", "conflict", "building_hit")}
    weights = stacked(configs)["domain"].reward
    for name, value in OTHER.items():
        if name in same:
            held = getattr(weights, name.split(".")[-1])
            assert held[2 + list(OTHER).index(name)] == value != held[0]


def test_a_sweep_leaves_ordinary_runs(whole):
    out, reports = whole
    runs = runs_in(out)
    assert [run.relative_to(out).as_posix() for run in runs] == [f"{n}/seed-0" for n in NAMES]
    described = json.loads((out / "sweep.json").read_text())
    assert described["settings"] == {
        "learner.gamma": [0.9, 0.97],
        "domain.packet_loss": [[0.0, 0.0], [0.2, 0.4]],
    }
    for run, name, report in zip(runs, NAMES, reports, strict=True):
        config, _ = load(run)[:2]
        assert f"{config.learner.gamma:g}" in name
        assert described["runs"][name]["t90"]["mean"] == report["t90"]
        assert (run / "curves.png").is_file() and (run / "replay.gif").is_file()
    assert list(by_settings(load_runs([out]))) == [f"{name}/seed-0" for name in NAMES]
    # Worlds differ, and with them what evaluations measure.
    assert reports[0]["return"] != reports[1]["return"]


def test_an_evaluation_of_a_swept_run_repeats_its_report(whole):
    """In its own world, not in that of the first run."""
    out, reports = whole
    loaded = jaxqmix.load_policy(out / NAMES[3] / "seed-0" / "checkpoints" / "final" / "12")
    again, _ = jaxqmix.evaluate(loaded, episodes=4)
    for name in ("return", "coverage", "t90"):
        assert again[name] == pytest.approx(reports[3][name], rel=1e-3, abs=1e-3)


def test_a_stopped_sweep_resumes_bit_equal(whole, tmp_path):
    out = tmp_path / "out"
    assert train_sweep(TINY, out, SWEEP, callback=Interrupt(7, signal.SIGINT)) is None
    assert train_sweep(TINY, out, SWEEP, resume=True) == whole[1]
    for run, other in zip(runs_in(out), runs_in(whole[0]), strict=True):
        chex.assert_trees_all_equal(load(run)[1], load(other)[1])


def test_values_of_the_command_line():
    words = ["learner.learning-rate=1e-3,3e-4", "domain.wind-speed=5,0:10"]
    expected = {"learner.learning_rate": [1e-3, 3e-4], "domain.wind_speed": [5.0, (0.0, 10.0)]}
    assert swept_values(words) == expected
    gamma = "learner.gamma"
    for wrong in (gamma, f"{gamma}=", f"{gamma}=x", "=1", f"{gamma}=1:2:3", f"{gamma}=1,"):
        with pytest.raises(ConfigError, match=r"sweep = .* give SETTING=NUMBER,NUMBER"):
            swept_values([wrong])
    with pytest.raises(ConfigError, match=r"lr=1e-3 .*did you mean --learner.learning-rate\?"):
        swept_values(["lr=1e-3"])
    with pytest.raises(ConfigError, match="named twice"):
        swept_values(["learner.gamma=1", "--learner.gamma=0.5"])


def test_the_command_sweeps(monkeypatch):
    given = []
    monkeypatch.setattr("jaxqmix.sweeps.train_sweep", lambda *words: given.append(words))
    monkeypatch.setattr("jaxqmix.commands.train.prepare_jax", lambda: None)
    words = ["train", "quick", "--sweep", "learner.gamma=0.9,0.97", "--seeds", "2"]
    assert cli.run(words) == 0
    ((config, out, sweep, seeds, resume, shown),) = given
    assert (config.preset, seeds, resume) == ("quick", 2, False)
    assert sweep == {"learner.gamma": [0.9, 0.97]} and out.as_posix() == "runs/quick-sweep"
    assert shown._several == "learner.gamma 0.9, 0.97 x seeds 0 to 1"


def test_what_is_shown_in_the_end(whole, capsys):
    out, _ = whole
    console.Console(out, "four runs").on_finish()
    text = capsys.readouterr().out
    assert "gamma-0.9_packet_loss-0/seed-0 and so on" in text.replace("\n", "")
    assert "sweep.json" in text


def test_bad_sweeps_are_refused_in_one_line(whole, tmp_path):
    out, _ = whole

    def refused(sweep, out=tmp_path / "new", **options):
        with pytest.raises(ConfigError) as error:
            jaxqmix.train(TINY, out, sweep=sweep, quiet=True, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "must name a setting" in refused({})
    assert "must name a setting" in refused("learner.gamma")
    assert "must be a list of values" in refused({"learner.gamma": 0.5})
    assert "must be a list of values" in refused({"learner.gamma": []})
    assert "did you mean learner.gamma?" in refused({"learner.gama": [0.5]})
    assert "it decides the program; sweep learner.gamma" in refused({"learner.hidden": [32, 64]})
    assert "learner.gamma = 1.5 is not allowed" in refused({"learner.gamma": [0.5, 1.5]})
    assert "seeds = 0" in refused({"learner.gamma": [0.5]}, seeds=0)
    assert "runs log to TensorBoard" in refused({"learner.gamma": [0.5]}, wandb="x")
    own = jaxqmix.make(TINY)
    assert "has its own domain" in refused({"domain.delay": [0.5]}, env=own)
    assert "is not empty" in refused(SWEEP, out)
    assert "holds gamma-0.9_packet_loss-0/seed-0" in refused(
        {"learner.gamma": [0.5]}, out, resume=True
    )
    assert "it holds no sweep to resume" in refused(SWEEP, tmp_path / "new", resume=True)
    assert "single run" in refused(SWEEP, out / NAMES[0] / "seed-0", resume=True)
    assert not (tmp_path / "new").exists()


def test_a_stranger_s_description_leads_nowhere_else(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    expected = [run.relative_to(out) for run in runs_in(out)]
    for text in ('{"runs": ["../elsewhere", 3]}', "[1]", "", '{"runs": 5}'):
        (out / "sweep.json").write_text(text)
        assert [run.relative_to(out) for run in runs_in(out)] == sorted(expected)


def test_bound_leaves_the_config_alone():
    changed = bound(TINY, {"learner.gamma": np.float32(0.5), "domain": "arrays"})
    assert changed.learner.gamma == np.float32(0.5) and changed.domain == "arrays"
    assert TINY.learner.gamma != 0.5 and from_dict(dataclasses.asdict(TINY)) == TINY
    assert list(swept_configs(TINY, {"learner.gamma": [0.5, 0.5]})) == ["gamma-0.5"]
    near = swept_configs(TINY, {"learner.gamma": [0.9, 0.90000001]})
    assert list(near) == ["gamma-0.9", "gamma-0.90000001"]
    with pytest.raises(ConfigError, match="drones is not allowed: it decides the program"):
        swept_configs(TINY, {"env.drones": [3.0, 4.0]})
