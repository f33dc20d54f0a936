"""What a person sees while a swarm trains: in a terminal of 80 columns, and in a log."""

import io

import pytest
from rich.console import Console as Terminal

from jaxqmix import console
from jaxqmix.presets import preset
from jaxqmix.render.curves import Record

REPORT = {
    "episodes": 12_345.0,
    "env_steps": 10_000_000,
    "env_steps_per_second": 1_234_567.8,
    "epsilon": 0.05,
    "return": -1.234,
    "coverage": 0.96,
    "collision_rate": 0.1234,
    "violation_rate": 0.0123,
    "loss": 0.01234,
}
FIGURES = (
    "episode 12,345",
    "env steps 10,000,000",
    "1,234,568 env steps/s",
    "epsilon 0.05",
    "return -1.23",
    "coverage 96%",
    "collisions 12.34%",
    "violations 1.23%",
    "loss 0.0123",
)


@pytest.fixture(name="show")
def show_fixture(monkeypatch, tmp_path):
    """Shows a short run of 20 reports on a terminal or a log; returns what was written."""

    def show(width, interactive):
        written = io.StringIO()
        settings = {"file": written, "width": width, "force_terminal": interactive}
        monkeypatch.setattr(
            console, "Terminal", lambda **more: Terminal(**settings, _environ={}, **more)
        )
        shown = console.Console(tmp_path / "run")
        shown.on_start(preset("quick"), 0, {"swarms": 5_000_000, "replay": 0})
        for step in range(1, 21):
            shown.on_advance(step)
            shown.on_training_report(REPORT)
        shown.on_stopping()
        shown.on_stopped(20)
        return written.getvalue()

    return show


def test_names_are_no_markup(tmp_path, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(console, "Terminal", lambda **_: Terminal(file=written, width=80))
    console.Console(tmp_path / "x[/y]").on_finish()
    assert "x[/y]" in written.getvalue()
    run = Record("quick[vdn]", {"training": {}}, [], None)
    console.show_runs([run], {})
    assert "quick[vdn]" in written.getvalue()


def test_the_figures_of_a_report_fit_80_columns():
    lines = console.metric_lines(REPORT)
    assert max(map(len, lines)) <= 80
    for figure in FIGURES:
        assert figure in " ".join(lines)
    nothing = dict.fromkeys(("return", "coverage", "collision_rate", "violation_rate"))
    assert "return -   coverage -" in console.metric_lines(REPORT | nothing)[1]


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_shows_every_figure_below_the_bar(show, width):
    written = show(width, True)
    for figure in FIGURES:
        assert figure in written
    assert "…" not in written


def test_a_log_gets_a_whole_line_now_and_then(show):
    lines = show(80, False).splitlines()
    reports = [line for line in lines if line.startswith("episode")]
    assert len(reports) == 20 // console.LOGGED
    for figure in FIGURES:
        assert figure in reports[0]
    assert "\x1b" not in "".join(lines)
    assert "640 env steps" not in lines[0] and "swarms 5.0 MB" in lines[1]
    assert lines[-1].startswith("stopped and saved at 12,800 env steps")
