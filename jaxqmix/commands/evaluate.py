"""Commands that fly a trained policy or a planner: `jaxqmix evaluate`, `render` and `plot`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxqmix.commands.arguments import similar_path, split_world
from jaxqmix.commands.common import (
    PLACE,
    check_file,
    optional,
    parse,
    prepare_jax,
    single,
    write,
)
from jaxqmix.config import ConfigError, DomainConfig, EnvConfig, from_dict
from jaxqmix.planners import PLANNERS
from jaxqmix.presets import PRESETS, preset

if TYPE_CHECKING:
    Planner = str
else:
    Planner = Literal[PLANNERS]
PLANNER = f"{{{','.join(PLANNERS)}}}"
"""What --planner takes."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Fly held-out cities and judge them against the success criteria.

    --env.* and --domain.* change the world that was trained in: --domain.packet-loss 0.5.
    """

    episodes: int = 256
    """How many episodes."""
    drones: Annotated[int | None, optional("INT", "as trained")] = None
    """Fly with so many drones instead."""
    city: Annotated[Path | None, optional(PLACE, "as trained")] = None
    """Fly over this city file, or over those of this folder, instead."""
    seed: int = 0
    """Which held-out cities; the same for every policy."""
    planner: Annotated[Planner | None, optional(PLANNER, "the trained policy")] = None
    """Evaluate a scripted planner on the same cities instead of the trained policy."""
    to_horizon: bool = False
    """Fly on when the mission is complete: to the time limit, or 100 % coverage."""
    no_compare: bool = False
    """Leave out the best scripted planner, to compare with; planners fly the same cities once, and
    their figures are kept."""
    site: Annotated[str | None, optional("SITE", "none")] = None
    """Of a federation's run: this site's policy and cities; a number or a name."""
    json: Annotated[Path | None, optional("FILE", "none")] = None
    """Write the report here."""
    trajectories: Annotated[Path | None, optional("FILE.npz", "none")] = None
    """Write the flown episodes here, enough to recompute every metric."""


@dataclasses.dataclass(frozen=True)
class Render:
    """Draw an episode over a held-out city.

    --env.* and --domain.* change the world that was trained in: --domain.packet-loss 0.5.
    """

    out: Path
    """Where to: .png (still), .gif or .mp4 (animation), .html (3-D replay)."""
    drones: Annotated[int | None, optional("INT", "as trained")] = None
    """Fly with so many drones instead."""
    city: Annotated[Path | None, optional(PLACE, "as trained")] = None
    """Fly over this city file instead."""
    seed: int = 0
    """Which held-out city."""
    planner: Annotated[Planner | None, optional(PLANNER, "the trained policy")] = None
    """Draw a scripted planner instead of the trained policy."""
    compare: Annotated[Planner | None, optional(PLANNER, "none")] = None
    """Draw this planner beside it, over the same city."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Show final evaluations in a table, and draw training curves and coverage over time.

    Runs that differ by nothing but the seed become one line with a band.
    """

    out: Path = Path("curves.png")
    """Where to (.png, .pdf or .svg)."""
    planner: Annotated[
        tuple[Planner, ...], tyro.conf.UseAppendAction, optional(PLANNER, "none")
    ] = ()
    """Also fly this scripted planner, to compare coverage over time; may be given again."""
    episodes: Annotated[int | None, optional("INT", "as in the runs")] = None
    """How many held-out cities a planner flies; by default those of the runs' final evaluations."""


@dataclasses.dataclass(frozen=True)
class World:
    """Settings of the world, to fly in another than the trained one."""

    env: Annotated[EnvConfig, tyro.conf.FlagConversionOff]
    domain: DomainConfig


def evaluate_command(arguments: list[str]) -> int:
    """`jaxqmix evaluate RUN_OR_CHECKPOINT`, or a preset with --planner."""
    world, arguments = split_world(arguments)
    given, names = parse(Evaluate, arguments, "jaxqmix evaluate RUN", Evaluate())
    name = single(names, "run")
    check_file("json", given.json)
    check_file("trajectories", given.trajectories, (".npz",))
    from jaxqmix import api, comparison
    from jaxqmix.console import show_report

    if given.site is not None and name is not None:
        from jaxqmix.federated.run import site_folder

        name = str(site_folder(Path(name), given.site))
    loaded = find_policy(name, given.planner, given.drones, given.city, world)
    flown = {"episodes": given.episodes, "seed": given.seed, "to_horizon": given.to_horizon}
    report, episodes = api.evaluate(
        loaded, **flown, keep=given.trajectories is not None, curve=given.json is not None
    )
    planners = {}
    if not given.no_compare and given.planner is None:
        planners = comparison.planner_reports(loaded.config, **flown, notice=flies)
    show_report(report, loaded.config, planners)
    if given.json:
        best = comparison.best_planner(planners)
        report |= {"best_planner": best} if best else {}
        write(given.json, lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    if given.trajectories:
        import numpy as np

        from jaxqmix.env.recording import trajectories

        assert episodes is not None
        arrays = trajectories(episodes, loaded.config.env)

        # To an open file, for numpy adds `.npz` to a name that does not end so.
        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, **arrays)

        write(given.trajectories, save)
    return 0


def render_command(arguments: list[str]) -> int:
    """`jaxqmix render RUN --out FILE`."""
    world, arguments = split_world(arguments)
    given, names = parse(Render, arguments, "jaxqmix render RUN")
    name = single(names, "run")
    check_file("out", given.out, (".png", ".gif", ".mp4", ".html"))
    if given.out.suffix.lower() == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ConfigError(f'out = {given.out} needs imageio-ffmpeg: pip install ".[video]"')
    from jaxqmix import api
    from jaxqmix.console import frames, outcome
    from jaxqmix.render import render

    loaded_policies = [find_policy(name, given.planner, given.drones, given.city, world)]
    if given.compare:
        loaded_policies.append(find_policy(name, given.compare, given.drones, given.city, world))
    episodes = [api.record(loaded, seed=given.seed) for loaded in loaded_policies]
    with frames() as progress:
        write(
            given.out,
            lambda path: render(
                episodes[0],
                path,
                cell_size=loaded_policies[0].config.env.cell_size,
                title=loaded_policies[0].name,
                other=episodes[1] if given.compare else None,
                other_title=loaded_policies[1].name if given.compare else "",
                progress=progress,
            ),
        )
    for loaded, episode in zip(loaded_policies, episodes, strict=True):
        print(outcome(loaded.name, episode, loaded.config.env))
    print(f"open {given.out.resolve().as_uri()}")
    return 0


def plot_command(arguments: list[str]) -> int:
    """`jaxqmix plot RUN [RUN ...] --out FILE`."""
    given, names = parse(Plot, arguments, "jaxqmix plot RUN [RUN ...]", Plot())
    if not names:
        raise ConfigError("run is missing: give at least one run's folder")
    check_file("out", given.out, (".png", ".pdf", ".svg"))
    for name in names:
        if not Path(name).exists() and (hint := similar_path(Path(name))):
            raise ConfigError(f"run = {name} is not allowed: there is no such folder; {hint}")
    from jaxqmix.console import show_runs
    from jaxqmix.render.curves import load_runs, plot_runs

    runs = load_runs([Path(name) for name in names])
    planners = {}
    if given.planner:
        from jaxqmix.comparison import planner_reports

        prepare_jax()
        config = from_dict(runs[0].settings)
        # The cities of the runs' final evaluations.
        episodes = given.episodes
        flown = {"episodes": config.evaluation.final_episodes if episodes is None else episodes}
        flown["seed"] = config.evaluation.seed
        chosen = tuple(dict.fromkeys(given.planner))
        planners = planner_reports(config, **flown, names=chosen, notice=flies)
    show_runs(runs, planners)
    write(given.out, lambda path: plot_runs(runs, path, planners))
    return 0


def find_policy(
    name: str | None,
    planner: str | None,
    drones: int | None,
    city: Path | None = None,
    world: Sequence[str] = (),
) -> Any:
    """A trained policy from a run, or a planner under a run's or a preset's config.

    Args:
      name: of the run, or of a preset.
      planner: of a scripted one.
      drones: how many, if not as in the config.
      city: a city file or a folder of them.
      world: settings of the world to change, as words of the command line.
    """
    from jaxqmix import checkpoints, loading

    if name is None:
        raise ConfigError("run is missing: give a run's folder or a checkpoint")
    is_preset = name in PRESETS and not Path(name).exists()
    if is_preset and planner is None:
        trained = Path("runs") / name
        hint = f"did you mean {trained}?" if trained.exists() else f"jaxqmix train {name} makes one"
        raise ConfigError(f"run = {name} is not allowed: it is a preset; {hint}")
    if not is_preset and not Path(name).exists() and (hint := similar_path(Path(name))):
        raise ConfigError(f"run = {name} is not allowed: there is no such folder; {hint}")
    prepare_jax()
    if planner is None:
        loaded = loading.load_policy(name, drones, city)
    else:
        config = preset(name) if is_preset else checkpoints.load(Path(name))[0]
        loaded = loading.scripted(planner, config, drones, city)
    if not world:
        return loaded
    config = loaded.config
    given, _ = parse(World, list(world), "jaxqmix", World(config.env, config.domain))
    return loaded.under(dataclasses.replace(config, env=given.env, domain=given.domain))


def flies(planner: str) -> None:
    """Says that a planner flies, which takes a while the first time."""
    print(f"flying the planner {planner} over the same cities, once", flush=True)
