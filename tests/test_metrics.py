"""The files and loggers that a run's reports go to."""

import csv
import json
import sys
import threading
import types
import warnings

import pytest
from board_events import events
from PIL import Image
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from jaxqmix.config import ConfigError
from jaxqmix.metrics import MetricsWriter, TensorBoardLogger, WeightsAndBiasesLogger, read
from jaxqmix.presets import preset

CONFIG = preset("quick")


def training(env_steps, loss=1.0):
    return {"kind": "training", "env_steps": env_steps, "loss": loss, "return": None}


def evaluation(env_steps, final=False):
    return {
        "kind": "evaluation",
        "env_steps": env_steps,
        "final": final,
        "coverage": 0.5,
        "coverage_ci95": [0.4, 0.6],
        "success": {"coverage": False},
    }


def gif(path):
    frames = [Image.new("P", (40, 30), colour) for colour in (1, 2, 3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def values(run):
    """The values that TensorBoard finds, by tag: (step, value) in order."""
    found = {}
    for event in events(run):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    return found


def test_reports_go_to_lines_tables_and_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path, [TensorBoardLogger(tmp_path, CONFIG)])
    reports = [training(640), training(1280, 0.5), evaluation(1280), evaluation(1280, final=True)]
    for report in reports:
        writer.write(report)
    writer.write_replay(gif(tmp_path / "replay.gif"), 1280)
    writer.close()
    assert read(tmp_path) == reports
    rows = (tmp_path / "training.csv").read_text().split()
    assert rows == ["env_steps,loss,return", "640,1.0,", "1280,0.5,"]
    found = values(tmp_path)
    losses = [(step, value.simple_value) for step, value in found["training/loss"]]
    assert losses == [(640, 1.0), (1280, 0.5)]
    assert len(found["evaluation/coverage"]) == 2
    assert (
        "| env.drones | 5 |" in found["settings/text_summary"][0][1].tensor.string_val[0].decode()
    )
    step, value = found["evaluation/replay"][0]
    assert (step, value.image.width, value.image.height) == (1280, 40, 30)
    assert value.image.encoded_image_string == (tmp_path / "replay.gif").read_bytes()


def test_tables_keep_their_columns(tmp_path):
    """No episode ended before the first report; later ones have what it lacks, and back again."""
    reports = [{**training(step), "length": None, "epsilon": 0.5} for step in (640, 1280, 1920)]
    reports[1] |= {"return": 0.25, "length": 20.0}
    for begun, some in ((0, reports[:2]), (1280, reports[2:])):
        writer = MetricsWriter(tmp_path, [], begun)
        for report in some:
            writer.write(report)
    with (tmp_path / "training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(reports)
    for row, report in zip(rows, reports, strict=True):
        expected = {name: value for name, value in report.items() if name != "kind"}
        assert {name: float(v) if v else None for name, v in row.items()} == expected


def test_tensorboard_compares_runs_by_what_is_tuned(tmp_path):
    TensorBoardLogger(tmp_path, CONFIG).close()
    found = values(tmp_path)

    def plugin(tag):
        return HParamsPluginData.FromString(found[tag][0][1].metadata.plugin_data.content)

    settings = plugin("_hparams_/session_start_info").session_start_info.hparams
    assert settings["learner.gamma"].number_value == CONFIG.learner.gamma
    assert settings["training.mode"].string_value == "online"
    assert "evaluation.seed" not in settings
    compared = plugin("_hparams_/experiment").experiment.metric_infos
    assert "evaluation/coverage" in [each.name.tag for each in compared]
    assert [path.is_file() for path in (tmp_path / "tensorboard").iterdir()] == [True]


def test_a_resumed_run_drops_what_it_will_report_again(tmp_path):
    writer = MetricsWriter(tmp_path, [])
    kept = [training(640), evaluation(640)]
    for report in [*kept, training(1280), evaluation(640, final=True)]:
        writer.write(report)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(training(1920))[:20])  # cut short by a crash
    with pytest.warns(UserWarning, match="1 lines"):
        assert len(read(tmp_path)) == 4
    with pytest.warns(UserWarning, match="1 lines"):
        MetricsWriter(tmp_path, [], env_steps=640)
    assert read(tmp_path) == kept


STRANGE = [
    b'{"kind": "train',
    b"null",
    b"{}",
    b"\xff\xfe",
    b"3",
    b"[" * 10**5,
    b'{"a":' * 10**4 + b"3" + b"}" * 10**4,
    b'{"kind": ["training"], "env_steps": 5}',
    b'{"kind": {}, "env_steps": 5}',
    b'{"kind": "training"}',
    b'{"kind": "training", "env_steps": "640"}',
    b'{"kind": "training", "env_steps": null}',
    b'{"kind": "training", "env_steps": NaN}',
    b'{"kind": "training", "env_steps": true}',
    b'{"kind": "training", "env_steps": -5}',
    b'{"kind": "training", "env_steps": 1' + b"0" * 400 + b"}",
    b'{"kind": "training", "env_steps": 5, "loss": 1' + b"0" * 400 + b"}",
    b'{"kind": "../../escaped", "env_steps": 5}',
    b'{"kind": "/any/path/abs", "env_steps": 5}',
]
"""Lines that a crash, a fault of the disk or a stranger may leave."""


@pytest.mark.parametrize("line", STRANGE, ids=range(len(STRANGE)))
def test_a_strange_line_costs_no_other(line, tmp_path):
    """And names no file, when a run resumes."""
    run = tmp_path / "run"
    run.mkdir()
    writer = MetricsWriter(run, [])
    reports = [training(640), evaluation(1280)]
    writer.write(reports[0])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    writer.write(reports[1])
    with pytest.warns(UserWarning, match=r"1 lines of .*metrics.jsonl are no reports; the other 2"):
        assert read(run) == reports
    with pytest.warns(UserWarning, match="no reports"):
        MetricsWriter(run, [], env_steps=1280)
    assert read(run) == reports
    names = sorted(path.name for path in run.iterdir())
    assert names == ["evaluation.csv", "metrics.jsonl", "training.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_lost_reports_are_warned_of(tmp_path):
    MetricsWriter(tmp_path, [])
    with pytest.warns(UserWarning, match="holds no reports: earlier ones are lost"):
        MetricsWriter(tmp_path, [], env_steps=640)


def test_what_is_not_finite_is_null_and_warned_of_once(tmp_path):
    board = TensorBoardLogger(tmp_path, CONFIG)
    writer = MetricsWriter(tmp_path, [board])
    with pytest.warns(UserWarning, match=r"loss is not finite at 640 env steps.*null; lower"):
        writer.write(training(640, loss=float("nan")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.write(evaluation(1280) | {"return": float("inf"), "ci": [1.0, -float("inf")]})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines
    assert [report.get("loss", report.get("return")) for report in read(tmp_path)] == [None, None]
    assert read(tmp_path)[1]["ci"] == [1.0, None]
    assert "training/loss" not in values(tmp_path)
    assert "nan" not in (tmp_path / "training.csv").read_text()


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", ""])
def test_no_spreadsheet_finds_a_formula(tmp_path, name):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(training(640) | {name: 1.0}) + "\n")
    writer = MetricsWriter(tmp_path, [], env_steps=640)
    writer.write(training(1280) | {name: "=cmd()"})
    with (tmp_path / "training.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["env_steps", "loss", "return", f"'{name}"]
    assert [row[-1] for row in rows] == ["1.0", ""]


def test_a_board_on_a_full_disk_says_so_where_it_is_told(tmp_path, monkeypatch):
    """And not from a thread of its own, minutes later."""
    board, threads = TensorBoardLogger(tmp_path, CONFIG), threading.enumerate()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer._py_recordio_writer, "write", full)
    writer = MetricsWriter(tmp_path, [board])
    with pytest.raises(ConfigError, match=r"metrics = .* could not be written: No space left"):
        writer.write(training(640))
    assert threading.enumerate() == threads == [threading.main_thread()]


def test_a_stop_while_a_run_resumes_loses_no_report(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, [])
    for step in (640, 1280):
        writer.write(training(step))
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}

    def stop(self, report, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(MetricsWriter, "_append", stop)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, [], env_steps=640)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_run_begun_anew_hides_its_first_attempt(tmp_path):
    """It was killed before its first checkpoint, and resumes at step 0."""
    for loss in (1.0, 2.0):
        board = TensorBoardLogger(tmp_path, CONFIG)
        board.log({"training/loss": loss}, 640)
        board.close()
    starts = [event for event in events(tmp_path) if event.session_log.status]
    assert [event.step for event in starts] == [1]


class FakeRun:
    """A run of Weights & Biases that remembers what it is told."""

    def __init__(self, **settings):
        self.settings, self.logged, self.over = settings, [], False
        self.summary = {"env_steps": 640} if settings["id"] else {}
        self.id = settings["id"] or "a1b2"

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "env_steps")

    def log(self, figures):
        self.logged.append(figures)

    def finish(self):
        self.over = True


@pytest.fixture(name="wandb")
def wandb_fixture(monkeypatch):
    """A stand-in for the package `wandb` that offers what is used of it."""
    package = types.ModuleType("wandb")
    package.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    package.Video = lambda path, format: (path, format)
    package.runs = []

    def init(**settings):
        package.runs.append(FakeRun(**settings))
        return package.runs[-1]

    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def test_weights_and_biases_hears_the_same(wandb, tmp_path):
    run = tmp_path / "quick"
    run.mkdir()
    writer = MetricsWriter(run, [WeightsAndBiasesLogger("swarms", run, CONFIG)])
    writer.write(training(640))
    writer.write_replay(gif(run / "replay.gif"), 640)
    writer.close()
    [fake] = wandb.runs
    assert (fake.settings["project"], fake.settings["name"]) == ("swarms", "quick")
    assert fake.settings["config"]["env.drones"] == 5
    assert fake.logged == [
        {"training/loss": 1.0, "env_steps": 640},
        {"evaluation/replay": (str(run / "replay.gif"), "gif"), "env_steps": 640},
    ]
    assert fake.over
    again = WeightsAndBiasesLogger("swarms", run, CONFIG)
    assert wandb.runs[1].settings["id"] == "a1b2"  # a resumed run goes on there
    for env_steps in (320, 640, 960):  # what it had logged before it was killed is not repeated
        again.log({"training/loss": 1.0}, env_steps)
    # Of those at 640 some may be missing.
    assert [point["env_steps"] for point in wandb.runs[1].logged] == [640, 960]


def test_weights_and_biases_may_refuse(wandb, tmp_path):
    def refuse(**settings):
        raise wandb.errors.Error("no API key\nconfigured")

    wandb.init = refuse
    with pytest.raises(ConfigError, match=r"wandb = swarms is not allowed: no API key configured"):
        WeightsAndBiasesLogger("swarms", tmp_path, CONFIG)


@pytest.mark.parametrize("package", [None, types.ModuleType("wandb")], ids=["missing", "a folder"])
def test_weights_and_biases_may_be_missing(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", package)
    with pytest.raises(ConfigError, match=r'pip install "\.\[wandb\]"'):
        WeightsAndBiasesLogger("swarms", tmp_path, CONFIG)
