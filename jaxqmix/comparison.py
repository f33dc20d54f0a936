"""How a policy compares with the scripted planners over the same cities, in figures and words."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxqmix import api, loading
from jaxqmix.compilation import cache_folder
from jaxqmix.config import EvaluationConfig, RunConfig, to_dict
from jaxqmix.env.mission import EVALUATED
from jaxqmix.evaluation import success
from jaxqmix.planners import RIVALS

MANY = 0.9
"""Share of missions that should be completed."""


def planner_reports(
    config: RunConfig,
    *,
    episodes: int = 256,
    seed: int = 0,
    to_horizon: bool = False,
    names: Sequence[str] | None = None,
    notice: Callable[[str], None] = lambda name: None,
    only_known: bool = False,
) -> dict[str, dict[str, Any]]:
    """Reports of scripted planners over the cities that `evaluate` flies, with `curve`.

    They are kept in the cache folder, by settings, versions and the code that flies: a second call
    takes no time.

    Args:
      config: of the worlds.
      episodes: as of `evaluate`.
      seed: as of `evaluate`.
      to_horizon: as of `evaluate`.
      names: of the planners; `RIVALS` by default.
      notice: hears the name of a planner that has to fly.
      only_known: leave out those that would have to fly.
    """
    found = {}
    for name in RIVALS if names is None else names:
        loaded = loading.scripted(name, config)
        asked = (name, episodes, seed, to_horizon, loaded.config.evaluation.episodes)
        worlds = {part: to_dict(loaded.config)[part] for part in ("env", "domain")}
        digest = hashlib.sha256(json.dumps([asked, worlds, code_digest()]).encode()).hexdigest()
        path = cache_folder() / f"{name}-{digest[:20]}.json"
        report = read_report(path)
        if report is None and not only_known:
            notice(name)
            report, _ = api.evaluate(
                loaded, episodes=episodes, seed=seed, to_horizon=to_horizon, curve=True
            )
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps(report), encoding="utf-8")
                part.replace(path)
        if report is not None:
            report["success"] = success(report, loaded.config.evaluation)  # by these criteria
            found[name] = report
    return found


def read_report(path: Path) -> dict[str, Any] | None:
    """A kept report; None where there is none, or none that can be read."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report if {*EVALUATED, "coverage_over_time"} <= report.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


@functools.cache
def code_digest() -> str:
    """Of what decides how planners fly: our code, and JAX's version."""
    digest = hashlib.sha256(jax.__version__.encode())
    home = Path(__file__).parent
    for path in sorted(home.rglob("*.py")):
        if path.relative_to(home).parts[0] != "render":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def best_planner(reports: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The report of the planner that sees 90 % first; with equal times, most in the end."""
    return min(reports.values(), key=lambda r: (r["t90"], -r["coverage"]), default=None)


def criteria(config: EvaluationConfig) -> dict[str, str]:
    """What each success criterion demands, in words."""
    return {
        "collision_rate": f"< {percent(config.max_collision_rate)}",
        "return": f"> {config.min_return:g}",
        "coverage": f">= {percent(config.min_coverage)}",
    }


def percent(share: float) -> str:
    """A share in percent, without needless digits."""
    return f"{100 * share:.4g} %"


def verdict(
    report: dict[str, Any], config: RunConfig, best: dict[str, Any] | None = None
) -> list[tuple[str, str]]:
    """What an evaluation says, line by line, each with `good`, `fair` or `bad`.

    Args:
      report: of the evaluation.
      config: of what was flown.
      best: the best planner's over the same cities, if known.
    """
    demands = criteria(config.evaluation)
    failed = [name for name, met in report["success"].items() if not met]
    words = [f"{name.replace('_', ' ')} {demands[name]}" for name in failed or report["success"]]
    lines = [("bad", "criteria not met: ") if failed else ("good", "criteria met: ")]
    lines = [(lines[0][0], lines[0][1] + ", ".join(words))]
    if "mission_success" not in report:  # another world
        return lines
    done, horizon = report["mission_success"], config.env.horizon
    target = percent(min(0.95, config.env.coverage_target))
    kind = "good" if done >= MANY else "fair" if done >= 0.5 else "bad"
    text = (
        f"missions completed: {percent(round(done, 3))} ({target} seen within {horizon} env steps)"
    )
    lines.append((kind, text))
    if best is not None:
        lines.append(compared(report, best, horizon))
    return lines


def compared(report: dict[str, Any], best: dict[str, Any], horizon: int) -> tuple[str, str]:
    """How much sooner than the best planner 90 % is seen, or, where neither does, how much is."""
    mine, theirs, name = report["t90"], best["t90"], best["policy"]
    times = report.get("t90_over_limit")
    if min(mine, theirs) >= horizon or theirs == 0:
        mine, theirs = report["coverage"], best["coverage"]
        kind = "good" if mine >= theirs else "fair"
        return kind, f"sees {mine:.1%}; best planner ({name}) {theirs:.1%}"
    sooner = 1 - mine / theirs
    if abs(sooner) < 0.005:
        word = "as soon"
    else:
        word = f"{abs(sooner):.0%} {'sooner' if sooner > 0 else 'later'}".replace("%", " %")
    limit = f" ({times:.2f} times the limit)" if times else ""
    text = f"sees 90 % in {mine:.1f} env steps{limit}; best planner ({name}) {theirs:.1f}: {word}"
    return ("good" if sooner >= 0 else "fair"), text
