"""How near to the physical limit do swarms fly? t90 over the fewest env steps that physics allows.

The limit of an episode is `jaxqmix.env.mission.fewest_steps`:

    t >= (0.9 A - area seen at the start) / (N x 2 r x v x (1 - loss))

with A the coverable area, N drones, r the radius of a footprint at the highest altitude in that
visibility, v a cell per step, and loss the share of lost commands. It depends on cities, starts and
weather only, and is averaged over the same episodes as t90. It leaves out edges, overlap, climbing,
turning, zones and chance, and so nobody flies that well; quotients of different missions do not
compare (in `quick` the start counts most, and the limit is loose).

Flies the scripted planners, and the runs that are given, over each preset's 256 evaluation cities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import parse, parser, save, show

from jaxqmix import api, loading
from jaxqmix.comparison import planner_reports
from jaxqmix.compilation import enable_cache
from jaxqmix.planners import PLANNERS
from jaxqmix.presets import PRESETS, preset

FIGURES = ("limit", "t90", "t90_over_limit", "coverage")


def row_of(mission: str, report: dict[str, Any]) -> dict[str, Any]:
    """What the table and the file keep of an evaluation."""
    kept = {name: report.get(name) for name in FIGURES}
    kept["t90_over_limit_ci95"] = report.get("t90_over_limit_ci95")
    return {"mission": mission, "policy": report["policy"], "episodes": report["episodes"], **kept}


def main() -> None:
    """Flies, shows and saves."""
    line = parser(__doc__)
    line.add_argument("runs", nargs="*", type=Path, help="folders of runs")
    line.add_argument("--presets", nargs="*", default=list(PRESETS)[:3], choices=list(PRESETS))
    line.add_argument("--planners", nargs="*", default=["lanes", "tours"], choices=PLANNERS)
    line.add_argument("--episodes", type=int, default=256)
    arguments = parse(line)
    enable_cache()
    flown = {"episodes": arguments.episodes}
    rows = [
        row_of(name, report)
        for name in arguments.presets
        for report in planner_reports(preset(name), names=arguments.planners, **flown).values()
    ]
    for run in arguments.runs:
        loaded = loading.load_policy(run)
        report, _ = api.evaluate(loaded, **flown)
        rows.append(row_of(loaded.config.preset, report | {"policy": str(run)}))
    save("limits", rows, arguments.out)
    show(
        f"{arguments.episodes} unseen cities each; limit and t90 are means, in env steps",
        ("mission", "policy", "limit", "t90", "t90 / limit"),
        [
            (row["mission"], row["policy"], f"{row['limit']:.1f}", f"{row['t90']:.1f}",
             row["t90_over_limit"])
            for row in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
