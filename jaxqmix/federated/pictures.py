"""What a federation leaves as a picture: each site's curve, who took part, and what was sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.federated.config import FederationConfig, from_dict
from jaxqmix.metrics import read
from jaxqmix.render.scene import HUES

ABSENT, ADMITTED, CLIPPED, AWAY, REFUSED = range(5)
"""What became of a site in a round."""
WORDS = ("not chosen", "took part", "clipped", "away", "turned away")
COLOURS = ("#f2f2f2", "#4c9f70", "#b5d99c", "#c9c9c9", "#d1495b")


def took_part(rounds: list[dict[str, Any]], names: list[str]) -> np.ndarray:
    """What became of each site in each round: [sites, rounds] of the codes above."""
    grid = np.full((len(names), len(rounds)), ABSENT)
    place = {name: row for row, name in enumerate(names)}
    for column, line in enumerate(rounds):
        for name in line["chosen"]:
            grid[place[name], column] = ADMITTED
        refused = [name for part in line["refused"].values() for name in part]
        for code, found in ((CLIPPED, line["clipped"]), (AWAY, line["away"]), (REFUSED, refused)):
            for name in found:
                grid[place[name], column] = code
    return grid


def traffic(rounds: list[dict[str, Any]], config: FederationConfig) -> list[tuple[str, str]]:
    """The table of communication: what, and how much."""
    up, down = (sum(line[name] for line in rounds) for name in ("bytes_up", "bytes_down"))
    sent = sum(len(line["chosen"]) - len(line["away"]) for line in rounds)
    refused = sum(len(part) for line in rounds for part in line["refused"].values())
    one = up / sent if sent else 0.0
    rows = [
        ("rounds", f"{len(rounds)}"),
        ("updates sent", f"{sent}"),
        ("turned away", f"{refused}"),
        ("compression", config.compression),
        ("one update", size(one)),
        ("up in all", size(up)),
        ("down in all", size(down)),
    ]
    if rounds and rounds[-1]["epsilon_spent"] is not None:
        rows.append((f"epsilon, delta {config.delta:g}", f"{rounds[-1]['epsilon_spent']:.1f}"))
    return rows


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def draw_federation(folder: Path, out: Path | None = None) -> None:
    """Draws `federation.png` of a federation's folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = from_dict(json.loads((folder / "federation.json").read_text("utf-8")))
    names = [site["name"] for site in json.loads((folder / "sites.json").read_text("utf-8"))]
    rounds = [
        json.loads(line) for line in (folder / "rounds.jsonl").read_text("utf-8").splitlines()
    ]
    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["coverage", "t90", "t90"], ["part", "part", "traffic"]], width_ratios=[2, 1, 1.4]
    )
    for name, title in (
        ("coverage", "coverage in training"),
        ("t90", "t90 on held-out cities, env steps"),
    ):
        draw_sites(panels[name], folder, names, name, title)
    draw_part(panels["part"], took_part(rounds, names), names)
    draw_traffic(panels["traffic"], traffic(rounds, config))
    figure.suptitle(
        f"{len(names)} sites, {config.per_round} per round, {config.aggregate}: "
        "thin lines are sites, the thick black one all of them"
    )
    figure.savefig(out or folder / "federation.png", dpi=110)


def draw_sites(axes: Any, folder: Path, names: list[str], metric: str, title: str) -> None:
    """A metric of each site and of all, over env steps of the federation."""
    kind = "training" if metric == "coverage" else "evaluation"
    folders = [
        (folder / "sites" / name, 0.8, HUES[number % len(HUES)])
        for number, name in enumerate(names)
    ]
    folders.append((folder, 2.4, "#222222"))
    for place, width, colour in folders:
        reports = [r for r in read(place) if r["kind"] == kind and r.get(metric) is not None]
        points = [(r["env_steps"], r[metric]) for r in reports]
        if points:
            marker = "o" if kind == "evaluation" else None
            axes.plot(*zip(*points, strict=True), linewidth=width, color=colour, marker=marker,
                      markersize=3)  # fmt: skip
    if kind == "evaluation":
        key = "t90_of_strangers"
        points = [(r["env_steps"], r[key]) for r in read(folder) if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "--", color="#222222", label="cities of no site")
            axes.legend(frameon=False)
    from matplotlib.ticker import EngFormatter, PercentFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if metric == "coverage":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_title(title)
    axes.set_xlabel("env steps of all sites")
    axes.grid(alpha=0.25)


def draw_part(axes: Any, grid: np.ndarray, names: list[str]) -> None:
    """Who took part in which round."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    axes.imshow(
        grid, aspect="auto", cmap=ListedColormap(COLOURS), vmin=0, vmax=len(COLOURS) - 1,
        interpolation="nearest", extent=(0.5, grid.shape[1] + 0.5, len(names) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    for number, label in enumerate(axes.get_yticklabels()):
        label.set(color=HUES[number % len(HUES)], fontweight="bold")  # of the site's curves
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(axis="y", which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", left=False)
    axes.set_title("who took part")
    axes.set_xlabel("round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    present = sorted(set(grid.ravel().tolist()))
    axes.legend(
        handles=[Patch(color=COLOURS[code], label=WORDS[code]) for code in present],
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(present), frameon=False,
    )  # fmt: skip


def draw_traffic(axes: Any, rows: list[tuple[str, str]]) -> None:
    """The table of communication."""
    axes.axis("off")
    axes.set_title("communication")
    table = axes.table(rows, loc="center", cellLoc="left", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(11)
    table.scale(1, 1.7)
