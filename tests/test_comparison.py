"""Figures and words of how a policy compares with scripted planners."""

from __future__ import annotations

import json

import pytest

from jaxqmix import api, comparison
from jaxqmix.comparison import best_planner, planner_reports, verdict
from jaxqmix.env.mission import EVALUATED
from jaxqmix.presets import preset

QUICK = preset("quick")


def report(policy="qmix", **figures):
    """An evaluation's report."""
    good = {"coverage": 0.953, "t90": 53.0, "mission_success": 1.0, "collision_rate": 0.0}
    success = {"collision_rate": True, "return": True, "coverage": True}
    return {"policy": policy, "success": success} | good | figures


BEST = report("voronoi", t90=60.0)


@pytest.mark.parametrize(
    ("figures", "best", "lines"),
    [
        (
            {},
            BEST,
            [
                ("good", "criteria met: collision rate < 10 %, return > 0.5, coverage >= 90 %"),
                ("good", "missions completed: 100 % (95 % seen within 100 env steps)"),
                ("good", "sees 90 % in 53.0 env steps; best planner (voronoi) 60.0: 12 % sooner"),
            ],
        ),
        # A third of the missions fail: the criteria, which look at means, are not all there is.
        (
            {"mission_success": 0.68, "t90": 80.0},
            BEST,
            [
                ("good", "criteria met: collision rate < 10 %, return > 0.5, coverage >= 90 %"),
                ("fair", "missions completed: 68 % (95 % seen within 100 env steps)"),
                ("fair", "sees 90 % in 80.0 env steps; best planner (voronoi) 60.0: 33 % later"),
            ],
        ),
        (
            {"success": {"return": True, "coverage": False}, "mission_success": 0.1, "t90": 100.0,
             "coverage": 0.79},
            report("lanes", t90=100.0, coverage=0.72),
            [
                ("bad", "criteria not met: coverage >= 90 %"),
                ("bad", "missions completed: 10 % (95 % seen within 100 env steps)"),
                ("good", "sees 79.0%; best planner (lanes) 72.0%"),
            ],
        ),
        (
            {"t90": 60.1},
            BEST | {"policy": "a"},
            [..., ..., ("fair", "sees 90 % in 60.1 env steps; best planner (a) 60.0: as soon")],
        ),
        (
            {"t90_over_limit": 1.4611},
            BEST | {"t90_over_limit": 1.7},
            [..., ..., ("good", "sees 90 % in 53.0 env steps (1.46 times the limit); best planner "
                        "(voronoi) 60.0: 12 % sooner")],
        ),
        ({}, None, [..., ...]),
        (
            {"t90": 1.0},
            BEST | {"t90": 0.0},
            [..., ..., ("good", "sees 95.3%; best planner (voronoi) 95.3%")],
        ),
    ],
)  # fmt: skip
def test_the_verdict_says_what_is_met_and_what_is_better(figures, best, lines):
    found = verdict(report(**figures), QUICK, best)
    assert len(found) == len(lines)
    assert all(line is ... or line == said for line, said in zip(lines, found, strict=True))


def test_the_best_planner_is_the_soonest():
    reports = {name: report(name, t90=t90) for name, t90 in (("a", 61.0), ("b", 60.0))}
    assert best_planner(reports)["policy"] == "b"
    assert best_planner({}) is None
    never = {name: report(name, t90=100.0, coverage=c) for name, c in (("a", 0.8), ("b", 0.7))}
    assert best_planner(never)["policy"] == "a"


def test_planners_fly_once(monkeypatch, tmp_path):
    """Other cities, worlds or code are flown anew, and damaged files too."""
    flown, said = [], []

    def fly(loaded, **asked):
        flown.append((loaded.name, asked["episodes"], loaded.config.env.drones))
        names = dict.fromkeys(EVALUATED, 0.5)
        return report(loaded.name, coverage_over_time={"mean": [0.5]}, **names), None

    monkeypatch.setattr(api, "evaluate", fly)
    monkeypatch.setattr(comparison, "cache_folder", lambda: tmp_path / "cache")
    assert planner_reports(QUICK, episodes=8, only_known=True) == {}
    reports = planner_reports(QUICK, episodes=8, notice=said.append)
    assert list(reports) == said == ["greedy", "voronoi", "lanes", "tours"] and len(flown) == 4
    assert planner_reports(QUICK, episodes=8, only_known=True) == reports and len(flown) == 4
    # What only learning depends on does not matter.
    assert planner_reports(QUICK.replace(**{"training.seed": 5}), episodes=8) == reports
    assert len(flown) == 4
    # Criteria are the asker's.
    lenient = QUICK.replace(**{"evaluation.min_coverage": 0.4})
    judged = planner_reports(lenient, episodes=8)["lanes"]["success"]
    assert judged["coverage"] and not reports["lanes"]["success"]["coverage"] and len(flown) == 4
    planner_reports(QUICK, episodes=9, names=("lanes",))
    planner_reports(QUICK.replace(**{"env.drones": 4}), episodes=8, names=("lanes",))
    assert flown[4:] == [("lanes", 9, 5), ("lanes", 8, 4)]
    for file in (tmp_path / "cache").iterdir():
        file.write_text(json.dumps([1]))
    assert planner_reports(QUICK, episodes=8, names=("lanes",)) and len(flown) == 7
    monkeypatch.setattr(comparison, "code_digest", lambda: "other")
    planner_reports(QUICK, episodes=8, names=("lanes",))
    assert len(flown) == 8
