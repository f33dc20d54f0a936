"""Several seeds in one program: each an ordinary run, equal to the one of its seed alone."""

import dataclasses
import json
import shutil
import signal
import warnings

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from training_programs import TINY, Interrupt, shared_programs, trainer_of  # noqa: F401

import jaxqmix
from jaxqmix import checkpoints, cli, console
from jaxqmix.config import ConfigError, to_dict
from jaxqmix.evaluation import t_interval
from jaxqmix.folders import JOURNAL
from jaxqmix.memory import memory_needed
from jaxqmix.metrics import SETTINGS, numbers, read, runs_in
from jaxqmix.provenance import read_journal
from jaxqmix.render.curves import load_runs
from jaxqmix.runner import Callback, together, train
from jaxqmix.seeds import common_step, seed_configs, summary, train_seeds

CONFIGS = dict(zip(("seed-0", "seed-1"), seed_configs(TINY, 2), strict=True))


class Reports(Callback):
    """Keeps what it hears."""

    def __init__(self):
        self.training, self.evaluations = [], []

    def on_training_report(self, report):
        self.training.append(report)

    def on_evaluation(self, report):
        self.evaluations.append(report)


def state_of(run, until=None):
    """The newest state that a run of `CONFIGS` saved."""
    trainer = dataclasses.replace(trainer_of(TINY), config=CONFIGS[run.name])
    return checkpoints.read_state(run, trainer, until)


def timeless(run):
    """A run's reports without its speed."""
    return [{k: v for k, v in r.items() if "per_second" not in k} for r in read(run)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two seeds, finished; and what was told of them."""
    out, heard = tmp_path_factory.mktemp("whole") / "out", Reports()
    return out, train_seeds(TINY, out, 2, callback=heard), heard


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Two seeds, stopped after 7 of 12 iterations."""
    out, callback = tmp_path_factory.mktemp("parts") / "out", Interrupt(7, signal.SIGINT)
    assert train_seeds(TINY, out, 2, callback=callback) is None
    assert callback.saved_at == 7
    return out


def test_seeds_side_by_side_are_single_runs():
    """Up to rounding: two runs in one program, and the second alone."""
    both = trainer_of(TINY, 2)
    state, metrics = both.iterate(both.init([0, 5]), 3)
    alone, single = trainer_of(TINY).iterate(trainer_of(TINY).init(5), 3)
    of_second = both.split(jax.device_get((state.learner, metrics)))[1]
    expected = jax.device_get((alone.learner, single))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), of_second, expected
    )
    assert memory_needed(both)["swarms"] == 2 * memory_needed(trainer_of(TINY))["swarms"]


def test_each_seed_leaves_what_a_run_does(whole):
    out, finals, _ = whole
    assert [run.name for run in runs_in(out)] == list(CONFIGS)
    for run, final in zip(runs_in(out), finals, strict=True):
        assert json.loads((run / SETTINGS).read_text()) == json.loads(
            json.dumps(to_dict(CONFIGS[run.name]))
        )
        reports = read(run)
        assert reports[-1] == final and final["final"]
        kinds = [report["kind"] for report in reports]
        assert kinds.count("training") == 12 and kinds.count("evaluation") == 3 + 1
        best = max((r for r in reports if r.get("final") is False), key=lambda r: r["return"])
        steps = {kind: checkpoints.steps_of(run, kind) for kind in checkpoints.KINDS}
        assert steps == {
            "latest": [12, 10],
            "best": [best["env_steps"] // TINY.iteration_steps],
            "final": [12],
        }
        assert list((run / "tensorboard").iterdir())
        assert Image.open(run / "replay.gif").n_frames > 3
        (entry,) = read_journal(run / JOURNAL)
        assert (entry["outcome"], entry["seeds"]) == ("finished", 2)
    first, second = (state_of(run)[1] for run in runs_in(out))
    assert not np.array_equal(first.key, second.key)


def test_seeds_report_what_their_runs_alone_do(whole, tmp_path):
    """The same cities too; up to rounding, which grows as training goes on."""
    train(TINY, tmp_path / "alone", callback=Interrupt(4, signal.SIGINT))
    alone, beside = timeless(tmp_path / "alone"), timeless(whole[0] / "seed-0")
    assert [each["kind"] for each in alone] == ["training"] * 4 + ["evaluation"]
    for one, other in zip(alone, beside, strict=False):
        assert one.keys() == other.keys()
        for name, value in numbers(one).items():
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_stopped_seeds_resume_bit_equal(whole, stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    again = Interrupt(9, signal.SIGTERM)
    assert train_seeds(TINY, out, 2, resume=True, callback=again) is None
    assert train_seeds(TINY, out, 2, resume=True) is not None
    for run in runs_in(out):
        expected, found = state_of(whole[0] / run.name), state_of(run)
        assert found[0] == expected[0] == 12
        chex.assert_trees_all_equal(found[1], expected[1])
        assert timeless(run) == timeless(whole[0] / run.name)
        outcomes = [entry["outcome"] for entry in read_journal(run / JOURNAL)]
        assert outcomes == ["stopped", "stopped", "finished"]


def test_a_seed_goes_on_alone_as_any_run(stopped, tmp_path):
    run = tmp_path / "seed-0"
    shutil.copytree(stopped / "seed-0", run)
    report = train(TINY, run, resume=True)
    assert report["final"] and state_of(run)[0] == 12
    learned = state_of(run)[1].learner.ema
    chex.assert_trees_all_equal(checkpoints.load(run)[1], learned)
    assert Image.open(run / "curves.png").size[0] > 500


def test_runs_that_were_killed_while_saving_go_on_from_a_common_step(stopped, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    shutil.rmtree(out / "seed-1" / "checkpoints" / "latest" / "7")
    with pytest.warns(UserWarning, match="seed-0 goes back from iteration 7 to 6"):
        train_seeds(TINY, out, 2, resume=True, callback=Interrupt(7, signal.SIGINT))
    for run in runs_in(out):
        chex.assert_trees_all_equal(state_of(run), state_of(stopped / run.name))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((4, 2), (4, 2), 4),
        ((4, 2), (2,), 2),
        ((), (), 0),
        ((2,), (), 0),
        ((4, 2), (), None),
        ((12,), (6, 4), None),
    ],
)
def test_the_common_step(first, second, expected, tmp_path):
    """A kill in the first save begins anew; no more than that is ever given up."""
    folders = [tmp_path / "seed-0", tmp_path / "seed-1"]
    for folder, steps in zip(folders, (first, second), strict=True):
        for step in steps:
            (folder / "checkpoints" / "latest" / str(step)).mkdir(parents=True)
    if expected is None:
        with pytest.raises(ConfigError, match=r"no checkpoint of a common iteration .* one by one"):
            common_step(folders)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert common_step(folders) == expected


def test_means_and_intervals(whole):
    """Student's t with 2 degrees of freedom: 4.3027 standard errors."""
    mean, half = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert np.isnan(t_interval([1.0])[1])
    out, finals, _ = whole
    told = json.loads((out / "seeds.json").read_text())
    assert set(told) == {"t90", "return", "coverage", "collision_rate"}
    for name, figure in told.items():
        values = [final[name] for final in finals]
        assert list(figure["seeds"].values()) == values
        mean, half = t_interval(values)
        assert figure["mean"] == pytest.approx(np.mean(values))
        assert figure["ci95"] == pytest.approx([mean - half, mean + half])


def test_listeners_hear_means_with_the_runs_own(whole):
    _, finals, heard = whole
    assert len(heard.training) == 12 and len(heard.evaluations) == 3 + 1
    last = heard.evaluations[-1]
    assert last["seeds"] == finals and last["episodes"] == 4
    assert last["return"] == pytest.approx(np.mean([final["return"] for final in finals]))
    assert together(finals[:1]) is finals[0]
    one_lacks = together([{"t90_over_limit": 1.5, "loss": 1.0}, {"loss": 2.0}])
    assert one_lacks["t90_over_limit"] == one_lacks["loss"] == 1.5
    nothing = together([{"return": None, "loss": 1.0}, {"return": 0.5, "loss": 2.0}])
    assert (nothing["return"], nothing["loss"]) == (0.5, 1.5)
    failed = finals[0] | {"success": dict.fromkeys(finals[0]["success"], False)}
    passed = finals[0] | {"success": dict.fromkeys(finals[0]["success"], True)}
    mixed = together([failed, passed])
    assert not any(mixed["success"].values())
    assert console.evaluation_row(mixed).endswith("met by 1 of 2")


def test_what_is_shown_fits_80_columns(whole, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out, _, heard = whole
    report = heard.training[-1]
    wide = {"episodes": 12_345.0, "env_steps": 10_000_000, "env_steps_per_second": 1_234_567.8}
    each = [report["seeds"][0] | wide | {"return": value} for value in (-1.25, -1.5, -1.0)]
    lines = console.metric_lines(together(each))
    assert max(map(len, lines)) <= 80
    assert "3 x 1,234,568 env steps/s" in lines[0]
    assert "return -1.25 (-1.50 to -1.00)" in lines[1]
    shown = console.Console(out, console.run_words(0, 2))
    shown.on_finish()
    text = capsys.readouterr().out
    for words in ("seed-0", "seed-1", "mean of", "±", "seeds.json"):
        assert words in text
    assert max(map(len, text.splitlines()[:-1])) <= 80  # the last is a line of a log


def test_a_folder_of_seeds_is_plotted_whole(whole, tmp_path, monkeypatch, capsys):
    out = whole[0]
    assert [run.name for run in load_runs([out])] == ["seed-0", "seed-1"]
    monkeypatch.chdir(tmp_path)
    assert cli.run(["plot", str(out), "--out", "bands.png"]) == 0
    assert "mean of" in capsys.readouterr().out
    for picture in (tmp_path / "bands.png", out / "curves.png"):
        assert Image.open(picture).size[0] > 500


def test_the_command_gives_seeds_a_folder_of_their_own(monkeypatch):
    given = []
    monkeypatch.setattr("jaxqmix.seeds.train_seeds", lambda *words: given.append(words))
    monkeypatch.setattr("jaxqmix.commands.train.prepare_jax", lambda: None)
    assert cli.run(["train", "quick", "--seeds", "5", "--seed", "3"]) == 0
    ((config, out, seeds, resume, _),) = given
    assert (config.training.seed, seeds, resume) == (3, 5, False)
    assert out.as_posix() == "runs/quick-seeds"


def test_bad_input_is_refused_in_one_line(whole, tmp_path, monkeypatch):
    out, _, _ = whole

    def refused(*words, **options):
        with pytest.raises(ConfigError) as error:
            train_seeds(*words, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    for seeds in (0, -1, True, 2.0, 1001):
        assert "must be a whole number from 1 to" in refused(TINY, tmp_path / "new", seeds)
    late = TINY.replace(**{"training.seed": 2**32 - 2})
    assert "from 1 to 2" in refused(late, tmp_path / "new", 3)
    assert not (tmp_path / "new").exists()
    assert "it is not empty; add --resume" in refused(TINY, out, 2)
    assert "is not empty" in refused(TINY, out, 1)
    assert "give --seed 0 --seeds 2" in refused(TINY, out, 3, resume=True)
    later = TINY.replace(**{"training.seed": 1})
    assert "holds seed-0, seed-1" in refused(later, out, 2, resume=True)
    assert "it is the run of one seed" in refused(TINY, out / "seed-0", 2, resume=True)
    assert "no runs of seeds" in refused(TINY, tmp_path / "new", 2, resume=True)
    for path in ("new", "x"):
        monkeypatch.setattr(checkpoints, "free_space", lambda _: 10**5)
        words = refused(TINY, tmp_path / path, 2)
        assert f"out = {tmp_path / path} is not allowed: checkpoints take" in words
        assert not (tmp_path / path).exists()
    with pytest.raises(ConfigError, match=r"it holds 2 runs: give one .*seed-0"):
        train(TINY, out, resume=True)
    with pytest.raises(ConfigError, match=r"it holds 2 runs: give one .*seed-0"):
        jaxqmix.load_policy(out)
    with pytest.raises(ConfigError, match="wandb = x is not allowed"):
        jaxqmix.train(TINY, tmp_path / "new", seeds=2, wandb="x", quiet=True)


def test_a_world_that_counts_only_the_return_is_summed_up():
    found = summary([{"return": 1.0}, {"return": 3.0}], seed_configs(TINY, 2))
    assert set(found) == {"return"} and found["return"]["mean"] == 2
