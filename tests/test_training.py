"""The training loop: one program, bit-equal resume, evaluation, the files of a run."""

import calendar
import csv
import dataclasses
import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from board_events import events
from PIL import Image
from training_programs import REPLAY, TINY, Interrupt, shared_programs, trainer_of  # noqa: F401

import jaxqmix
from jaxqmix import checkpoints, folders, runner, training
from jaxqmix.checkpoints import CheckpointError, check_devices
from jaxqmix.compilation import tree_bytes
from jaxqmix.config import ConfigError, NotFiniteError, to_dict
from jaxqmix.env.observation import feature_slices
from jaxqmix.env.urban_grid import training_env
from jaxqmix.memory import memory_needed, require_memory
from jaxqmix.metrics import read
from jaxqmix.policies import exploration_rate
from jaxqmix.provenance import Journal, read_journal
from jaxqmix.rollout import sums
from jaxqmix.runner import train
from jaxqmix.training import (
    count_updates,
    make_trainer,
)


def tags(run):
    """What TensorBoard finds in a run."""
    found = set()
    for event in events(run):
        found |= {value.tag for value in event.summary.value}
    return found


EFFORT = ("seconds", "programs", "cached")


def state_of(run, config):
    step, state = checkpoints.restore(run, trainer_of(config))
    return step, jax.device_get(state)


@pytest.fixture(scope="module")
def online_run(tmp_path_factory):
    """A finished tiny run."""
    run = tmp_path_factory.mktemp("runs") / "online"
    return run, train(TINY, run)


@pytest.mark.parametrize(
    ("config", "number"),
    [(TINY, signal.SIGINT), (REPLAY, signal.SIGTERM)],
    ids=["online", "recurrent replay"],
)
def test_a_stopped_run_resumes_bit_equal(config, number, tmp_path, online_run):
    whole = online_run[0]
    if config is not TINY:
        whole = tmp_path / "whole"
        assert train(config, whole)["final"]
    callback = Interrupt(7, number)
    assert train(config, tmp_path / "parts", callback=callback) is None
    assert callback.saved_at == 7
    assert train(config, tmp_path / "parts", resume=True)["final"]
    (step, expected), (again, found) = state_of(whole, config), state_of(tmp_path / "parts", config)
    assert step == again == config.iterations == 12
    chex.assert_trees_all_equal(found, expected)

    def timeless(run):
        return [{k: v for k, v in r.items() if "per_second" not in k} for r in read(run)]

    assert timeless(tmp_path / "parts") == timeless(whole)
    first, second = read_journal(tmp_path / "parts" / folders.JOURNAL)
    assert (first["outcome"], second["outcome"]) == ("stopped", "finished")
    assert first["env_steps"] == [0, 7 * config.iteration_steps]
    assert second["env_steps"] == [first["env_steps"][1], config.training.env_steps]
    assert first["wall_seconds"] > 0 and first["versions"]["jax"] == jax.__version__


FLOWN = ["coverage", "return", "t90", "mission_success", "collision_rate", "collided_drones"]
FLOWN += ["violation_rate", "episodes"]
LEARNT = ["loss", "mean_q", "gradient_norm", "epsilon", "length", "env_steps_per_second"]
LEARNT += ["valid_share"]
PROMISED = {"training": FLOWN + LEARNT, "evaluation": FLOWN}
"""Figures of each kind of report."""


def assert_reported_everywhere(run):
    """Every promised figure is in the lines, in the table and on TensorBoard, with one value."""
    for kind, names in PROMISED.items():
        reports = [report for report in read(run) if report["kind"] == kind]
        with (run / f"{kind}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(reports)
        for name in ["env_steps", *names]:
            cells = [float(row[name]) if row[name] else None for row in rows]
            assert cells == [report[name] for report in reports], name
            assert cells[-1] is not None and np.isfinite(cells[-1])
        board = {
            value.tag: value.simple_value
            for event in events(run)
            if event.step == reports[-1]["env_steps"]
            for value in event.summary.value
        }
        for name in names:
            assert board[f"{kind}/{name}"] == pytest.approx(reports[-1][name], rel=1e-6), name


def test_a_run_leaves_what_it_promises(online_run):
    run, report = online_run
    assert json.loads((run / "config.json").read_text())["preset"] == "tiny"
    kinds = [r["kind"] for r in read(run)]
    assert kinds.count("training") == 12 and kinds.count("evaluation") == 3 + 1
    final = json.loads((run / "evaluation.json").read_text())
    over_time = final.pop("coverage_over_time")
    assert read(run)[-1] == final == report
    assert over_time["mean"][-1] == pytest.approx(report["coverage"], abs=1e-5)
    for curve in over_time.values():
        assert len(curve) == TINY.env.horizon + 1 and np.all(np.diff(curve) >= 0)
    assert np.all(np.array(over_time["p10"]) <= over_time["p90"])
    assert_reported_everywhere(run)
    assert Image.open(run / "curves.png").size[0] > 500
    assert Image.open(run / "replay.gif").n_frames > 3
    assert "evaluation/replay" in tags(run)
    assert checkpoints.steps_of(run, "final") == [12]
    assert len(checkpoints.steps_of(run, "latest")) == TINY.checkpoint.keep
    periodic = [r for r in read(run) if r["kind"] == "evaluation" and not r["final"]]
    best = max(periodic, key=lambda report: report["return"])
    assert checkpoints.steps_of(run, "best") == [best["env_steps"] // TINY.iteration_steps]
    # The same weights over other cities.
    assert periodic[-1]["return"] != report["return"]


def test_replay_learns_nothing_before_it_is_warm_and_something_after():
    trainer = trainer_of(REPLAY)
    state = trainer.init(0)
    before = jax.device_get(state.learner.parameters)
    state, _ = trainer.iterate(state, 1)
    chex.assert_trees_all_equal(jax.device_get(state.learner.parameters), before)
    state, _ = trainer.iterate(state, 1)
    assert int(state.replay.size) * trainer.mesh.size == 16
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(jax.device_get(state.learner.parameters), before)


def test_the_program_holds_no_copy_of_the_replay_store():
    replay = dataclasses.replace(REPLAY.replay, capacity=2**12)
    trainer = make_trainer(dataclasses.replace(REPLAY, replay=replay))
    state = trainer.init(0)
    program = trainer.iterate.lower(state, 1).compile().memory_analysis()
    store = tree_bytes(state.replay) // trainer.mesh.size
    assert program.alias_size_in_bytes > store
    assert program.temp_size_in_bytes < store / 10


@pytest.mark.parametrize("config", [TINY, REPLAY], ids=["online", "replay"])
def test_an_iteration_compiles_once(config):
    """Its output has the types and the places of its input, as a resumed state has."""

    def kinds(state):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)

    def places(state):
        return jax.tree.map(lambda leaf: leaf.sharding, state)

    trainer = trainer_of(config)
    before = trainer.init(0)
    expected = kinds(before), places(before)
    after, _ = trainer.iterate(before, 1)
    assert (kinds(after), places(after)) == expected
    again = trainer.place(jax.device_get(after))
    assert (kinds(again), places(again)) == expected


def test_a_seed_repeats_and_another_differs():
    trainer = trainer_of(TINY)

    def after(seed):
        state = trainer.init(seed)
        for _ in range(2):
            state, _ = trainer.iterate(state, 1)
        return jax.device_get(state.learner.parameters)

    first = after(3)
    chex.assert_trees_all_equal(first, after(3))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(first, after(4))


def test_exploration_falls_per_step_or_per_episode():
    config = TINY.training
    assert exploration_rate(np.float32(0), 20, config) == 1.0
    np.testing.assert_allclose(exploration_rate(np.float32(100), 20, config), 0.525, rtol=1e-5)
    np.testing.assert_allclose(exploration_rate(np.float32(900), 20, config), 0.05, rtol=1e-5)
    config = dataclasses.replace(config, epsilon_decay_per_episode=0.9)
    np.testing.assert_allclose(exploration_rate(np.float32(40), 20, config), 0.81, rtol=1e-5)
    np.testing.assert_allclose(exploration_rate(np.float32(2000), 20, config), 0.05, rtol=1e-5)


def test_the_learning_rate_falls_over_the_calls_that_learn():
    def calls(mode, warmup):
        training = dataclasses.replace(TINY.training, mode=mode)
        replay = dataclasses.replace(TINY.replay, warmup=warmup)
        return count_updates(dataclasses.replace(TINY, training=training, replay=replay))

    swarms = TINY.training.swarms
    assert calls("online", 3 * swarms) == calls("replay", 1) == calls("replay", swarms)
    assert calls("replay", swarms) == TINY.iterations
    assert calls("replay", swarms + 1) == calls("replay", 2 * swarms) == TINY.iterations - 1


def test_a_damaged_journal_is_written_anew(tmp_path):
    for text in ("", "{", "{}", "[3]"):
        (tmp_path / "run.json").write_text(text)
        Journal(tmp_path / "run.json", 40, 0.0).end("stopped", 80)
        (entry,) = read_journal(tmp_path / "run.json")
        assert (entry["outcome"], entry["env_steps"]) == ("stopped", [40, 80])


def test_a_process_began_before_it_compiled(tmp_path):
    before = time.time() - 100
    Journal(tmp_path / "run.json", 0, time.perf_counter() - 100).end("stopped", 80)
    (entry,) = read_journal(tmp_path / "run.json")
    began = calendar.timegm(time.strptime(entry["began"], "%Y-%m-%dT%H:%M:%SZ"))
    assert abs(began - before) < 50 <= entry["wall_seconds"]


def test_clocks_are_spread_over_the_horizon():
    trainer = trainer_of(TINY)
    swarms = trainer.init(0).swarms
    times = np.asarray(swarms.state.time)
    each_device = np.sort(times.reshape(trainer.mesh.size, -1), axis=1)
    assert (each_device == [0, 5, 10, 15]).all()
    # And the first observations say so, to the agents and to the mixer.
    left, first = 1 - times / TINY.env.horizon, swarms.timestep.observation
    clock = feature_slices(TINY.env)["mission"].start
    np.testing.assert_allclose(first.agents[..., clock], left[:, None] + 0 * first.agents[..., 0])
    np.testing.assert_allclose(first.state[:, -2], left)


@pytest.fixture(scope="module", name="flown")
def flown_fixture(online_run):
    """The policy of the finished run, and what it flew."""
    loaded = jaxqmix.load_policy(online_run[0])
    return loaded, *jaxqmix.evaluate(loaded, episodes=4, seed=TINY.evaluation.seed, keep=True)


def test_policies_load_act_and_carry_over_to_other_swarms(online_run, flown):
    run, report = online_run
    again = flown[1]
    assert again["return"] == pytest.approx(report["return"], abs=1e-6)
    assert set(again["success"]) == {"collision_rate", "return", "coverage"}
    other, _ = jaxqmix.evaluate(jaxqmix.load_policy(run, drones=5), episodes=2)
    assert other["drones"] == 5


def test_trajectories_recompute_the_metrics(flown):
    from jaxqmix.env.recording import trajectories

    loaded, report, episodes = flown
    data = trajectories(episodes, loaded.config.env)
    assert {name: (array.shape, array.dtype.kind) for name, array in data.items()} == {
        "cell_size": ((), "f"),
        "heights": ((4, 16, 20), "u"),
        "no_fly": ((4, 1, 4), "f"),
        "coverable": ((4, 16, 20), "b"),
        "seen": ((4, 16, 20), "b"),
        "seen_at": ((4, 16, 20), "i"),
        "positions": ((4, 21, 2, 3), "f"),
        "radii": ((4, 21, 2), "f"),
        "actions": ((4, 20, 2), "i"),
        "executed": ((4, 20, 2), "i"),
        "conflict": ((4, 20, 2), "b"),
        "building_hit": ((4, 20, 2), "b"),
        "violation": ((4, 20, 2), "b"),
        "reward": ((4, 20), "f"),
        "length": ((4,), "i"),
        "coverage": ((4,), "f"),
        "return": ((4,), "f"),
        "t90": ((4,), "i"),
    }
    drone_steps = data["length"] * 2
    collisions = (data["conflict"] | data["building_hit"]).sum(axis=(1, 2)) / drone_steps
    violations = data["violation"].sum(axis=(1, 2)) / drone_steps
    coverage = (data["seen"] & data["coverable"]).sum(axis=(1, 2)) / data["coverable"].sum(
        axis=(1, 2)
    )
    collided = (data["conflict"] | data["building_hit"]).any(axis=1)
    assert collided.mean() == pytest.approx(report["collided_drones"], abs=1e-6)
    assert (coverage >= 0.95).mean() == pytest.approx(report["mission_success"], abs=1e-6)
    returns = np.array([data["reward"][i, :n].sum() for i, n in enumerate(data["length"])])
    assert collisions.mean() == pytest.approx(report["collision_rate"], abs=1e-6)
    assert violations.mean() == pytest.approx(report["violation_rate"], abs=1e-6)
    assert coverage.mean() == pytest.approx(report["coverage"], abs=1e-6)
    assert returns.mean() == pytest.approx(report["return"], abs=1e-5)
    assert data["t90"].mean() == pytest.approx(report["t90"], abs=1e-6)
    np.testing.assert_allclose(data["coverage"], coverage, atol=1e-6)
    # The seen map follows from the positions and radii alone.
    y, x = (np.arange(s) * 20.0 + 10 for s in data["seen"].shape[1:])
    seen = np.zeros(data["seen"].shape, bool)
    for e, n in enumerate(data["length"]):
        for (px, py, _), radius in zip(
            data["positions"][e, : n + 1].reshape(-1, 3),
            data["radii"][e, : n + 1].reshape(-1),
            strict=True,
        ):
            seen[e] |= (y[:, None] - py) ** 2 + (x - px) ** 2 <= radius**2
    disagree = ((seen & data["coverable"]) != (data["seen"] & data["coverable"])).mean()
    assert disagree < 1e-3


def test_a_used_folder_and_a_changed_swarm_are_refused(online_run, tmp_path):
    run, _ = online_run
    with pytest.raises(ConfigError, match="not empty"):
        train(TINY, run)
    wider = dataclasses.replace(TINY, learner=dataclasses.replace(TINY.learner, hidden=8))
    with pytest.raises(ConfigError, match=r"learner.hidden = 8 .* trained with 16"):
        train(wider, run, resume=True)
    later = dataclasses.replace(TINY, domain=dataclasses.replace(TINY.domain, delay=(0.2, 0.2)))
    with pytest.raises(ConfigError, match=r"domain.delay = .* trained with"):
        train(later, run, resume=True)
    more = dataclasses.replace(TINY, env=dataclasses.replace(TINY.env, drones=3))
    with pytest.raises(ConfigError, match=r"env.drones = 3 .* trained with 2"):
        train(more, run, resume=True)
    with pytest.raises(ConfigError, match="must be a run's folder"):
        train(TINY, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_run_that_had_saved_nothing_resumes_at_its_start(tmp_path):
    folders.make_folder(tmp_path, TINY)
    assert runner.restore(tmp_path, trainer_of(TINY)) == (0, None)
    with pytest.raises(ConfigError, match=r"learner.network = gru .* trained with mlp"):
        runner.restore(tmp_path, trainer_of(REPLAY))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must be a run's folder"):
        runner.restore(tmp_path, trainer_of(TINY))


def damage(checkpoint):
    """Empties the files of a checkpoint's state."""
    for file in (checkpoint / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def test_a_damaged_latest_falls_back_with_a_warning(tmp_path):
    callback = Interrupt(7, signal.SIGINT)
    run = tmp_path / "run"
    train(TINY, run, callback=callback)
    newest, previous = checkpoints.steps_of(run, "latest")[:2]
    assert (newest, previous) == (7, 6)
    _, expected = state_of(run, TINY)
    damage(run / "checkpoints" / "latest" / "7")
    with pytest.warns(UserWarning, match="damaged"):
        step, _ = state_of(run, TINY)
    assert step == previous
    # The run goes on from there, and what it saves at the damaged step replaces it.
    with pytest.warns(UserWarning, match="damaged"):
        train(TINY, run, resume=True, callback=Interrupt(7, signal.SIGINT))
    step, found = state_of(run, TINY)
    assert step == 7
    chex.assert_trees_all_equal(found, expected)
    assert (run / "checkpoints" / "damaged" / "latest-7").is_dir()
    (run / "checkpoints" / "latest" / "7" / "about.json").write_text("[]")
    with pytest.warns(UserWarning, match=r"7 is damaged"):
        jaxqmix.load_policy(run / "checkpoints" / "latest")


def test_a_run_stopped_before_its_damaged_checkpoints_is_saved(tmp_path):
    run = tmp_path / "run"
    train(TINY, run, callback=Interrupt(7, signal.SIGINT))
    for step in (7, 6):
        damage(run / "checkpoints" / "latest" / str(step))
    callback = Interrupt(5, signal.SIGINT)
    with pytest.warns(UserWarning, match="damaged"):
        train(TINY, run, resume=True, callback=callback)  # From `best`, at step 4.
    assert callback.saved_at == 5
    step, found = state_of(run, TINY)
    assert step == 5
    state = trainer_of(TINY).init(TINY.training.seed)
    for _ in range(5):
        state, _ = trainer_of(TINY).iterate(state, 1)
    chex.assert_trees_all_equal(found, jax.device_get(state))


def test_a_damaged_final_is_written_again(tmp_path, online_run):
    run = tmp_path / "run"
    shutil.copytree(online_run[0], run)
    final = run / "checkpoints" / "final" / "12"
    shutil.rmtree(final / "policy")
    assert train(TINY, run, resume=True)["final"]
    shutil.rmtree(run / "checkpoints" / "latest")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step, found = state_of(run, TINY)
        jaxqmix.load_policy(final)
    assert step == 12
    chex.assert_trees_all_equal(found, state_of(online_run[0], TINY)[1])


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_damaged_checkpoints_make_way(kind, tmp_path):
    """Newer ones when a run resumes, one of the same step when it saves; a whole one stays."""
    state = trainer_of(TINY).init(0)
    for step in (5, 3, 3):
        writer = checkpoints.Checkpoints(tmp_path, TINY, begun=step)
        writer.save(kind, step, state)
        assert checkpoints.steps_of(tmp_path, kind)[0] == step
        if step == 3:
            damage(tmp_path / "checkpoints" / kind / "3")
    writer = checkpoints.Checkpoints(tmp_path, TINY, begun=3)
    writer.save(kind, 3, state)
    written = (tmp_path / "checkpoints" / kind / "3").stat().st_mtime_ns
    writer = checkpoints.Checkpoints(tmp_path, TINY, begun=3)
    writer.save(kind, 3, state)
    assert (tmp_path / "checkpoints" / kind / "3").stat().st_mtime_ns == written
    moved = sorted(place.name for place in (tmp_path / "checkpoints" / "damaged").iterdir())
    assert moved == [f"{kind}-3", f"{kind}-3-2", f"{kind}-5"]


def test_a_save_that_was_declined_is_not_taken_for_one(tmp_path):
    """Orbax saves nothing before the newest step, as when another run writes in the folder."""
    state = trainer_of(TINY).init(0)
    writer = checkpoints.Checkpoints(tmp_path, TINY, begun=0)
    writer.save("latest", 5, state)
    with pytest.raises(ConfigError, match=r"latest/3 is not allowed: .* holds a newer one"):
        writer.save("latest", 3, state)


def test_one_line_tells_that_nothing_can_be_read(tmp_path):
    def damaged(folder):
        raise OSError("cut short")

    def of_another_run(folder):
        raise checkpoints.CheckpointError("env.drones = 6 is not allowed")

    folders = [tmp_path / "7", tmp_path / "5"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match="every checkpoint there is damaged"):
            checkpoints.first_readable(folders, damaged, tmp_path)
        with pytest.raises(ConfigError, match=r"env\.drones"):
            checkpoints.first_readable(folders, of_another_run, tmp_path)


def test_missing_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be a run's folder"):
        jaxqmix.load_policy(tmp_path / "nothing")
    foreign = tmp_path / "checkpoints" / "final" / "3"
    foreign.mkdir(parents=True)
    with pytest.raises(ConfigError, match="not written by jaxqmix"):
        jaxqmix.load_policy(tmp_path)


def test_memory_is_counted_before_it_is_taken():
    """The estimate of what stays equals what is allocated; a run that cannot fit is refused."""
    needed = memory_needed(trainer_of(REPLAY))
    state = trainer_of(REPLAY).init(0)
    assert needed["replay"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.replay))
    assert needed["swarms"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.swarms))
    assert memory_needed(trainer_of(TINY))["replay"] == 0
    require_memory(needed, None, REPLAY)
    require_memory(needed, sum(needed.values()), REPLAY)
    large = dataclasses.replace(REPLAY, replay=dataclasses.replace(REPLAY.replay, batch=10**6))
    for part, config, setting in (
        ("replay", REPLAY, "replay.capacity"),
        ("update", REPLAY, "training.swarms"),
        ("update", large, "replay.batch"),
    ):
        with pytest.raises(ConfigError, match=f"memory = .* lower {setting}"):
            require_memory(needed | {part: 10**12}, 10**9, config)


def test_training_flies_on_when_the_mission_is_complete():
    assert training_env(TINY).config.coverage_target == TINY.training.coverage_target == 1.0
    assert trainer_of(TINY).env.config.coverage_target == TINY.env.coverage_target < 1


def test_stored_rewards_are_in_units_of_an_even_pace():
    trainer = trainer_of(REPLAY)
    state, _ = jax.device_get(trainer.iterate(trainer.init(0), 1))
    devices, each = trainer.mesh.size, TINY.training.swarms // trainer.mesh.size
    stored = state.replay.data.reward.reshape(devices, -1, TINY.training.rollout)[:, :each]
    expected = state.swarms.statistics.total_reward * TINY.env.horizon
    assert (expected > 0).any()
    np.testing.assert_allclose(stored.sum(axis=-1).ravel(), expected, rtol=1e-3, atol=1e-3)


def test_no_city_is_flown_twice_and_only_waiting_swarms_begin_anew():
    trainer = trainer_of(TINY)
    state = trainer.init(0)

    def look(state):
        return np.array(state.swarms.done), np.array(state.swarms.state.city.heights)

    done, before = look(state)
    seen = {heights.tobytes() for heights in before}
    assert len(seen) == TINY.training.swarms
    for _ in range(TINY.iterations):
        state, _ = trainer.iterate(state, 1)
        waiting, (done, after) = done, look(state)
        for swarm in np.flatnonzero((after != before).any(axis=(1, 2))):
            assert waiting[swarm] and after[swarm].tobytes() not in seen
            seen.add(after[swarm].tobytes())
        before = after
    assert len(seen) >= TINY.training.swarms + 8


def test_seeds_and_exploration_reach_far():
    """Seeds use all of 32 bits, and env steps may outgrow them."""
    trainer = trainer_of(TINY)
    large = jax.device_get(trainer.init(2**32 - 1))
    assert not np.array_equal(large.key, jax.device_get(trainer.init(0)).key)
    late = dataclasses.replace(large, iterations=np.int32(2**31 - 10))
    _, metrics = trainer.iterate(trainer.place(late), 1)
    assert float(metrics.epsilon) == pytest.approx(TINY.training.epsilon_end)


@pytest.mark.parametrize(
    ("section", "name", "value", "fixed"),
    [
        ("env", "drones", 3, True),
        ("evaluation", "symmetric", False, True),
        ("evaluation", "episodes", 3, True),
        ("evaluation", "every_episodes", 3, False),
        ("evaluation", "min_coverage", 0.5, False),
        ("checkpoint", "keep", 3, False),
    ],
)
def test_what_resuming_may_change(tmp_path, section, name, value, fixed):
    """Among the settings of evaluations, those that choose the best checkpoint may not."""
    saved, asked = to_dict(TINY), to_dict(TINY)
    asked[section] |= {name: value}
    if not fixed:
        checkpoints.check_settings(tmp_path, saved, asked)
        return
    with pytest.raises(CheckpointError, match=rf"{section}\.{name} = {value} is not allowed"):
        checkpoints.check_settings(tmp_path, saved, asked)


@pytest.fixture(name="of_another_version")
def of_another_version_fixture(online_run, tmp_path):
    """A run, and a function that changes the settings in all of its checkpoints."""
    run = tmp_path / "run"
    shutil.copytree(online_run[0], run)

    def change(function):
        for file in (run / "checkpoints").glob("*/*/about.json"):
            about = json.loads(file.read_text())
            function(about["config"])
            file.write_text(json.dumps(checkpoints.sealed(about)))

    return run, change


def test_a_checkpoint_with_a_setting_more_is_refused_by_its_name(of_another_version):
    run, change = of_another_version
    change(lambda config: config["learner"].update(dropout=0.1))
    with pytest.raises(CheckpointError, match=r"another version .*: learner\.dropout = 0\.1"):
        jaxqmix.load_policy(run)


def test_a_setting_that_a_checkpoint_does_not_know_has_its_default(of_another_version):
    run, change = of_another_version
    change(lambda config: config["env"].pop("right_of_way"))
    assert jaxqmix.load_policy(run).config == TINY
    assert state_of(run, TINY)[0] == 12


@pytest.mark.parametrize("existed", [True, False])
def test_a_run_that_a_board_refuses_leaves_the_folder_as_it_was(existed, tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigError("wandb = swarms is not allowed: no API key configured")

    monkeypatch.setattr(runner, "import_wandb", lambda _: None)
    monkeypatch.setattr(folders, "WeightsAndBiasesLogger", refuse)
    run = tmp_path / "run"
    if existed:
        run.mkdir()
    with pytest.raises(ConfigError, match="no API key"):
        train(TINY, run, wandb="swarms")
    assert run.exists() == existed and not list(tmp_path.glob("run/*"))


def test_another_number_of_devices_is_noticed(tmp_path):
    online, store = trainer_of(TINY), trainer_of(REPLAY)
    check_devices(tmp_path, online.mesh.size, online)
    with pytest.warns(UserWarning, match="not bit for bit"):
        check_devices(tmp_path, online.mesh.size + 1, online)
    with pytest.raises(CheckpointError, match=f"devices = {store.mesh.size} is not allowed"):
        check_devices(tmp_path, store.mesh.size + 1, store)


def test_what_is_not_finite_stops_a_run_and_is_never_saved(tmp_path, monkeypatch):
    """The message names the first figure and when it was, and the last whole states stay."""

    def iterate(state, iterations):
        if state.iterations >= 4:
            broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.learner.parameters)
            learner = dataclasses.replace(state.learner, parameters=broken)
            state = trainer.place(dataclasses.replace(state, learner=learner))
        return trainer.iterate(state, iterations)

    trainer, run = trainer_of(TINY), tmp_path / "run"
    programs = trainer.programs | {"training": iterate}
    monkeypatch.setattr(runner, "compile_ahead", lambda *_: (programs, dict.fromkeys(EFFORT, 0)))
    with pytest.raises(
        NotFiniteError, match=r"(loss|gradient norm) is not finite after 200 env .* lower lear"
    ):
        train(TINY, run)
    assert checkpoints.steps_of(run, "latest") == [4, 2]
    for kind, steps in (("latest", (4, 2)), ("best", (4,)), ("final", ())):
        assert checkpoints.steps_of(run, kind) == list(steps)
        for step in steps:
            _, saved, _ = checkpoints.load(run / "checkpoints" / kind / str(step))
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    assert [entry["outcome"] for entry in read_journal(run / folders.JOURNAL)] == ["failed"]


def test_metrics_are_sums_since_the_last_report_and_tell_what_broke():
    counted = sums(training_env(TINY).mission)
    before = training.no_metrics(("loss", "mean_q", "gradient_norm"), counted)
    learner = {"loss": jnp.float32(2), "mean_q": jnp.float32(1), "gradient_norm": jnp.float32(3)}
    episodes = dict.fromkeys(counted, jnp.float32(1))
    whole, broken = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, jnp.nan])}

    def add(before, iterations, learner=learner, parameters=whole):
        rate = jnp.float32(0.5)
        done = jnp.int32(iterations)
        return training.count_iteration(before, done, learner, episodes, rate, parameters, 2)

    two = add(add(before, 0), 1)
    assert (int(two.iterations), float(two.learner["loss"]), float(two.ended)) == (2, 4.0, 2.0)
    spoilt = add(two, 2, learner | {"loss": jnp.float32(jnp.nan)})
    assert (int(spoilt.iterations), float(spoilt.episodes["length"])) == (1, 1.0)
    later = add(add(spoilt, 3, parameters=broken), 4)
    assert float(later.learner["loss"]) == 2.0, "NaN of the last report"
    found = {name: int(step) for name, step in later.not_finite.items()}
    assert found == {"loss": 3, "gradient_norm": 0, "parameters": 4}


def test_iterations_at_once_change_nothing():
    trainer = trainer_of(TINY)
    whole, _ = trainer.iterate(trainer.init(1), 3)
    parts, _ = trainer.iterate(trainer.init(1), 1)
    parts, _ = trainer.iterate(parts, 2)
    chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(parts))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("config", [TINY, REPLAY], ids=["online", "replay"])
def test_memory_does_not_grow(config):
    """Over hundreds of dispatches, with a wide margin; benchmarks/chaos.py measures thousands."""

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    state, _ = trainer_of(config).iterate(trainer_of(config).init(0), 10)
    before = resident()
    for _ in range(300):
        state, metrics = trainer_of(config).iterate(state, 1)
        jax.device_get(metrics)
    assert resident() - before < 100
