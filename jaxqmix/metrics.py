"""A run's metrics: JSON lines, CSV and TensorBoard."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

LINES = "metrics.jsonl"


class MetricsWriter:
    """Appends reports to `metrics.jsonl`, `training.csv`, `evaluation.csv` and TensorBoard.

    One report is one JSON object with `kind` (`training` or `evaluation`), `env_steps`, and its
    figures.
    """

    def __init__(self, run: Path, env_steps: int = 0):
        """Opens the files of a run; reports after `env_steps` are dropped (a run resumes there)."""
        from tensorboardX import SummaryWriter

        self._run = run
        kept = [report for report in read(run) if report["env_steps"] <= env_steps]
        self._rewrite(kept)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=env_steps + 1)

    def _rewrite(self, reports: list[dict[str, Any]]) -> None:
        for name in (LINES, "training.csv", "evaluation.csv"):
            (self._run / name).write_text("", encoding="utf-8")
        for report in reports:
            self._append(report)

    def _append(self, report: dict[str, Any]) -> None:
        with (self._run / LINES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
        flat = {name: value for name, value in report.items() if isinstance(value, int | float)}
        path = self._run / f"{report['kind']}.csv"
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(flat))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(flat)

    def write(self, report: dict[str, Any]) -> None:
        """Writes one report everywhere."""
        self._append(report)
        for name, value in report.items():
            if isinstance(value, int | float) and name != "env_steps":
                self._board.add_scalar(f"{report['kind']}/{name}", value, report["env_steps"])
        self._board.flush()

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Shows the run's settings in TensorBoard."""
        text = "```json\n" + json.dumps(settings, indent=2) + "\n```"
        self._board.add_text("settings", text)

    def write_image(self, name: str, image: Any, env_steps: int) -> None:
        """Shows an image [height, width, 3] (uint8) in TensorBoard."""
        self._board.add_image(name, image, env_steps, dataformats="HWC")

    def close(self) -> None:
        """Flushes everything."""
        self._board.close()


def read(run: Path) -> list[dict[str, Any]]:
    """All reports of a run, oldest first; a last line cut short by a crash is left out."""
    path = run / LINES
    if not path.is_file():
        return []
    reports = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return reports
