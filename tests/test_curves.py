"""Plots of runs, from files that a run could have written."""

import dataclasses
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxqmix.config import ConfigError, to_dict
from jaxqmix.console import show_runs
from jaxqmix.presets import preset
from jaxqmix.render.curves import (
    CURVES,
    PANELS,
    band,
    by_settings,
    curve,
    draw_coverage,
    headline,
    key_of,
    load_runs,
    plot_runs,
    short_names,
)

METRICS = [name for name, *_ in PANELS]


def write_run(folder, seed=0, mixer="qmix", finished=True, height=0.9):
    """The files of a run of `quick` with rising curves."""
    config = preset("quick")
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, seed=seed),
        learner=dataclasses.replace(config.learner, mixer=mixer),
    )
    reports = []
    for step in (1, 2, 3, 4):
        figures = dict.fromkeys(METRICS, height * step / 4) | {"env_steps": 1000 * step}
        reports.append({"kind": "training", **figures})
        success = {"coverage": False}
        reports.append({"kind": "evaluation", "final": False, "success": success, **figures})
    if finished:
        figures = dict.fromkeys(METRICS, height) | {"env_steps": 4000, "success": {"return": True}}
        reports.append({"kind": "evaluation", "final": True, **figures})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reports))
    if finished:
        mean = np.linspace(0, height, 101)
        over_time = {"mean": mean, "p10": mean * 0.8, "p90": mean * 1.1}
        over_time = {name: values.tolist() for name, values in over_time.items()}
        final = json.dumps(reports[-1] | {"coverage_over_time": over_time})
        (folder / "evaluation.json").write_text(final)
    return folder


def test_runs_that_differ_by_the_seed_belong_together(tmp_path):
    folders = [write_run(tmp_path / f"seed-{seed}", seed) for seed in (0, 1, 2)]
    folders.append(write_run(tmp_path / "vdn", mixer="vdn", finished=False))
    found = by_settings(load_runs(folders))
    assert {label: len(same) for label, same in found.items()} == {
        "seed-0 to seed-2 (3 seeds)": 3,
        "vdn": 1,
    }
    assert found["vdn"][0].evaluation["coverage"] == 0.9 and found["vdn"][0].final is None


def test_names_that_are_no_text_are_shown_escaped():
    """Such as a folder's of another encoding, or any accent under `LC_ALL=C`."""
    assert short_names([Path("runs/bad\udcff"), Path("runs/caf\u00e9")]) == [
        "bad\\udcff",
        "caf\u00e9",
    ]


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    places = ("a/x/quick", "b/x/quick", "b/quick", "b/vdn")
    mixers = ("qmix", "vdn", "iql", "vdn")
    folders = [
        write_run(tmp_path / place, index, mixer)
        for index, (place, mixer) in enumerate(zip(places, mixers, strict=True))
    ]
    runs = load_runs([*folders, folders[0] / ".." / "quick"])
    assert [run.name for run in runs] == ["a/x/quick", "b/x/quick", "b/quick", "vdn"]
    found = by_settings(runs)
    assert [len(same) for same in found.values()] == [1, 2, 1]
    assert list(found)[1] == "b/x/quick to vdn (2 seeds)"


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_plots_are_written(tmp_path, ending):
    runs = load_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)])
    planners = {"greedy": {"coverage_over_time": {"mean": [0.1, 0.5, 0.8]}}}
    out = tmp_path / f"curves{ending}"
    plot_runs(runs, out, planners)
    assert out.stat().st_size > 5000
    if ending == ".png":
        picture = np.asarray(Image.open(out).convert("RGB"), int)
        assert (np.abs(picture - (0x00, 0x72, 0xB2)).sum(axis=-1) < 30).sum() > 500


def test_an_unfinished_run_is_plotted_without_its_coverage_over_time(tmp_path):
    plot_runs(load_runs([write_run(tmp_path / "a", finished=False)]), tmp_path / "a.png")
    plot_runs(load_runs([write_run(tmp_path / "b")]), tmp_path / "b.png")
    widths = [Image.open(tmp_path / f"{name}.png").width for name in "ab"]
    assert widths[0] < widths[1]


def test_the_final_evaluation_is_no_point_of_a_curve(tmp_path):
    [run] = load_runs([write_run(tmp_path / "a")])
    np.testing.assert_allclose(curve(run.reports, "evaluation", "t90")[0], [1000, 2000, 3000, 4000])


def test_the_title_says_what_a_run_reached(tmp_path):
    [run] = load_runs([write_run(tmp_path / "a")])
    never = run.evaluation | {"t90": 100.0}
    soon = run.evaluation | {"t90": 52.6}
    words = [headline([dataclasses.replace(run, final=final)]) for final in (never, soon)]
    assert "sees 90 % not within 100 env steps" in words[0]
    assert "sees 90 % in 52.6 env steps" in words[1]


def test_the_key_tells_ends_that_all_runs_share(tmp_path):
    runs = load_runs([write_run(tmp_path / name) for name in "ab"])
    assert "(end at 95 %)" in key_of(runs)
    other = dataclasses.replace(runs[1], settings=runs[1].settings | {"world": "Own"})
    assert "end at" not in key_of([runs[0], other]) and "end at" not in key_of([other])


def test_a_band_spans_the_curves_where_all_of_them_are():
    axes = Figure().subplots()
    curves = [np.array([[0, 10, 20], [0.0, 1.0, 2.0]]), np.array([[5, 15, 40], [3.0, 3.0, 3.0]])]
    band(axes, [*curves, np.zeros((2, 0))], "#0072B2")
    steps, values = axes.lines[0].get_data()
    np.testing.assert_allclose(steps, [5, 10, 15, 20])
    np.testing.assert_allclose(values, [1.75, 2.0, 2.25, 2.5])
    edges = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([edges[:, 1].min(), edges[:, 1].max()], [0.5, 3.0])


@pytest.mark.parametrize(
    ("heights", "low", "high"), [([0.8], 0.64, 0.88), ([0.6, 0.8], 0.6, 0.8)], ids=["one", "seeds"]
)
def test_coverage_over_time_has_a_band_of_episodes_or_seeds(tmp_path, heights, low, high):
    folders = [write_run(tmp_path / str(h), seed=i, height=h) for i, h in enumerate(heights)]
    axes = Figure().subplots()
    draw_coverage(axes, load_runs(folders), "label", "#0072B2")
    edges = axes.collections[0].get_paths()[0].vertices
    last = edges[edges[:, 0] == 100][:, 1]
    np.testing.assert_allclose([last.min(), last.max()], [low, high])
    np.testing.assert_allclose(axes.lines[0].get_ydata()[-1], np.mean(heights))


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no metrics"):
        load_runs([tmp_path])
    folder = write_run(tmp_path / "a")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"run = .*config.json is not allowed: No such file"):
        load_runs([folder])


DEEP = "[" * 10**5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", r"config = \[\] is not allowed: must be a mapping"),
        ("null", "config = None is not allowed: must be a mapping"),
        ("3", "config = 3 is not allowed: must be a mapping"),
        ("{", "config.json is not allowed: it is damaged"),
        ("\xff", "config.json is not allowed: it is damaged"),
        (DEEP, "config.json is not allowed: it is damaged"),
        ('{"learner": {"dropout": 0.1}}', "learner.dropout = 0.1 is not allowed: known settings"),
        ('{"env": 3}', "env = 3 is not allowed: must be a mapping"),
    ],
    ids=range(8),
)
def test_settings_that_cannot_be_read_get_one_line(tmp_path, text, words):
    folder = write_run(tmp_path / "a")
    (folder / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigError, match=rf"run = .*a is not allowed: .*{words}") as refusal:
        load_runs([folder])
    assert "\n" not in str(refusal.value)


GOOD = {"kind": "evaluation", "env_steps": 5, "success": {}}


@pytest.mark.parametrize(
    "final",
    [
        *("[1]", '"abc"', "null3", "{}", "{", DEEP, "\xff"),
        json.dumps(GOOD),
        json.dumps(GOOD | {"coverage_over_time": "abc"}),
        json.dumps(GOOD | {"coverage_over_time": {"mean": [1.0] * 101, "p10": [1.0] * 101}}),
        json.dumps(GOOD | {"coverage_over_time": {name: [0.5] for name in CURVES}}),
        json.dumps(GOOD | {"coverage_over_time": {name: ["x"] * 101 for name in CURVES}}),
    ],
    ids=range(12),
)
def test_a_final_evaluation_that_cannot_be_drawn_gets_one_line(tmp_path, final):
    folder = write_run(tmp_path / "a")
    (folder / "evaluation.json").write_bytes(final.encode("latin1"))
    with pytest.raises(ConfigError, match=r"file = .*evaluation.json is not allowed: it is") as one:
        load_runs([folder])
    assert "\n" not in str(one.value)


def test_figures_that_cannot_be_drawn_are_left_out(tmp_path):
    """And the run is drawn."""
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        for row in ({"loss": "abc"}, {"loss": [1]}, {"loss": True}, {"coverage": None}):
            file.write(json.dumps({"kind": "training", "env_steps": 5000} | row) + "\n")
        file.write(json.dumps(GOOD | {"coverage": "x"}) + "\n")
        file.write(json.dumps({"kind": "evaluation", "env_steps": 5}) + "\n")
    [run] = load_runs([folder])
    assert curve(run.reports, "training", "loss")[0].tolist() == [1000, 2000, 3000, 4000]
    plot_runs([run], tmp_path / "a.png")


NAMES = ("cost$5_vs_$6", "_baseline", r"_lead$\frac", "$x$", "a[b]:bug:", "\u0085line", "$")


def test_names_are_drawn_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    runs = [
        dataclasses.replace(run, name=name)
        for name, run in zip(
            NAMES,
            load_runs(
                [
                    write_run(tmp_path / str(i), mixer="vdn", height=0.5 + i / 20)
                    for i in range(len(NAMES))
                ]
            ),
            strict=True,
        )
    ]
    runs = [
        dataclasses.replace(run, settings=run.settings | {"preset": str(i)})
        for i, run in enumerate(runs)
    ]
    figures = []
    savefig = Figure.savefig

    def keep(figure, *given, **named):
        figures.append(figure)
        savefig(figure, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        patch.setitem(matplotlib.rcParams, "text.usetex", True)
        plot_runs(
            runs, tmp_path / "names.png", {"_planner$": {"coverage_over_time": {"mean": [0.1]}}}
        )
        assert matplotlib.rcParams["text.usetex"]
    [figure] = figures
    shown = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert shown == [name.replace("\u0085", "\ufffd") for name in NAMES]
    show_runs(runs, {})
    table = capsys.readouterr().out
    assert all(name in table for name in NAMES if name.isprintable())


def test_settings_that_a_run_does_not_know_have_their_defaults(tmp_path):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", seed=1)
    (old / "config.json").write_text('{"preset": "quick"}')
    runs = load_runs([old, new])
    assert len(by_settings(runs)) == 1
    plot_runs(runs, tmp_path / "both.png")
