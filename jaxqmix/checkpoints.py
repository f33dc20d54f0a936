"""Orbax checkpoints of the whole training state, with the config inside.

A run keeps three kinds, each under a manager of its own: `latest` (periodic, to resume), `best`
(by evaluation) and `final`. One manager with `best_fn` would delete the newest checkpoints when it
keeps the best ones (google/orbax#526).

Damaged checkpoints of a run that goes on are moved to `checkpoints/damaged`: Orbax saves nothing at
or before the newest step that it finds.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxqmix.config import ConfigError, RunConfig, from_dict, to_dict
from jaxqmix.learner.networks import Parameters
from jaxqmix.maps import without_city
from jaxqmix.training import Trainer, TrainState, make_trainer

KINDS = ("latest", "best", "final")
FOLDER, DAMAGED = "checkpoints", "damaged"


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged, or of another run."""


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    # Compressing a replay store costs seconds of all cores at every save, and halves it at best.
    handlers = {
        name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in ("policy", "state")
    }
    handlers["about"] = ocp.JsonCheckpointHandler()
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)


class Checkpoints:
    """Writes a run's checkpoints; saving happens in the background."""

    def __init__(self, run: Path, config: RunConfig, begun: int, devices: int | None = None):
        """Opens a run's folder.

        Args:
          run: its folder.
          config: kept with every checkpoint.
          begun: the step at which the run begins or resumes. It resumes at its newest readable
            checkpoint, so newer ones are damaged, and are moved aside.
          devices: how many the run is spread over, if known.
        """
        self._devices = devices
        self._run, self._config, self._begun = run, to_dict(config), begun
        for kind in KINDS:
            for step in steps_of(run, kind):
                if step > begun:
                    move_aside(run, kind, step)
        keep = {"latest": config.checkpoint.keep, "best": 1, "final": 1}
        self._managers = {kind: _manager(run / FOLDER / kind, keep[kind]) for kind in KINDS}

    def save(self, kind: str, step: int, state: TrainState) -> None:
        """Saves a state; an older save of the same step is kept as it is, unless it is damaged.

        Args:
          kind: `latest`, `best` or `final`.
          step: rollouts so far.
          state: copied before this returns, so that it may be donated afterwards.

        Raises:
          CheckpointError: when Orbax declines, because something newer appeared in the folder.
        """
        manager = self._managers[kind]
        if step in manager.all_steps():
            # What this run has written itself is whole; only where it resumed lies an older save.
            if step > self._begun or self._is_whole(kind, step, state):
                return
            move_aside(self._run, kind, step)
            manager.reload()
        about = {"config": self._config, "devices": self._devices, "step": step}
        saved = manager.save(
            step,
            args=ocp.args.Composite(
                about=ocp.args.JsonSave(about),
                policy=ocp.args.PyTreeSave(_storable(state.learner.average)),
                state=ocp.args.PyTreeSave(_storable(state)),
            ),
        )
        if not saved:
            folder = self._run / FOLDER / kind
            raise CheckpointError(
                f"checkpoint = {folder / str(step)} is not allowed: {folder} holds a newer one; "
                "does another run write there?"
            )

    def _is_whole(self, kind: str, step: int, like: TrainState) -> bool:
        """Whether all parts of a checkpoint can be read."""
        self._managers[kind].wait_until_finished()
        folder = self._run / FOLDER / kind / str(step)
        try:
            read_about(folder)
            _read(folder / "policy", like.learner.average)
            _read(folder / "state", like)
        except Exception:  # Orbax raises many kinds on a damaged file.
            return False
        return True

    def close(self) -> None:
        """Waits until everything is written."""
        for manager in self._managers.values():
            manager.wait_until_finished()
            manager.close()


def steps_of(run: Path, kind: str) -> list[int]:
    """Steps of the finished checkpoints of a kind, newest first."""
    folder = run / FOLDER / kind
    if not folder.is_dir():
        return []
    return sorted((int(f.name) for f in folder.iterdir() if f.name.isdigit()), reverse=True)


def move_aside(run: Path, kind: str, step: int) -> None:
    """Moves a damaged checkpoint to `checkpoints/damaged`; parts may still be of use."""
    place = run / FOLDER / DAMAGED / f"{kind}-{step}"
    place.parent.mkdir(exist_ok=True)
    count = itertools.count(2)
    while place.exists():
        place = place.with_name(f"{kind}-{step}-{next(count)}")
    (run / FOLDER / kind / str(step)).rename(place)


def restore(run: Path, trainer: Trainer) -> tuple[int, TrainState]:
    """The newest readable training state of a run, of any kind.

    A damaged checkpoint is passed over with a warning.

    Returns:
      Its step and state.

    Raises:
      CheckpointError: when there is none, or none can be read, or it was made with other settings
        or, in mode `replay`, on another number of devices.
    """
    found = sorted(
        ((step, run / FOLDER / kind / str(step)) for kind in KINDS for step in steps_of(run, kind)),
        key=lambda item: -item[0],
    )
    require_found(bool(found), run)
    shape = _empty_like(trainer)

    def read(folder: Path) -> TrainState:
        about = read_about(folder)
        check_settings(run, about["config"], to_dict(trainer.config))
        check_devices(run, about.get("devices"), trainer)
        return _read(folder / "state", shape)

    place, state = first_readable([folder for _, folder in found], read, run)
    return int(place.name), trainer.place(state)


def first_readable(
    folders: Sequence[Path], read: Callable[[Path], Any], asked: Path
) -> tuple[Path, Any]:
    """The first checkpoint that can be read, and what was read; warns of those passed over.

    Args:
      folders: of checkpoints, the preferred one first.
      read: reads one; a `CheckpointError` that it raises is final.
      asked: the path that the user gave.

    Raises:
      CheckpointError: when none can be read.
    """
    damaged = []
    for folder in folders:
        try:
            found = read(folder)
        except CheckpointError:
            raise
        except Exception as error:  # Orbax raises many kinds on a damaged file.
            damaged.append(f"checkpoint {folder} is damaged ({type(error).__name__})")
            continue
        for message in damaged:
            warnings.warn(message, stacklevel=3)
        return folder, found
    raise CheckpointError(
        f"checkpoint = {asked} is not allowed: every checkpoint there is damaged or was not "
        "written by jaxqmix"
    )


def require_found(found: bool, path: Path) -> None:
    """Raises `CheckpointError` when a path holds no checkpoint."""
    if not found:
        raise CheckpointError(
            f"checkpoint = {path} is not allowed: must be a run's folder or a checkpoint in it"
        )


def saved_scale(run: Path) -> str:
    """The scale of the run in a folder, from its settings; `cpu` where they do not say."""
    try:
        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return settings.get("scale", "cpu")
    except (OSError, ValueError, AttributeError):  # Whoever resumes the run says what is wrong.
        return "cpu"


def _empty_like(trainer: Trainer) -> TrainState:
    """A state of zeros, to tell Orbax the shapes."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), trainer.state_shapes)


def _storable(tree: Any) -> Any:
    """A copy on the host, with a placeholder for empty arrays: Orbax refuses to store those."""
    return jax.tree.map(
        lambda leaf: leaf if leaf.size else np.zeros(1, leaf.dtype), jax.device_get(tree)
    )


def _read(folder: Path, shape: Any) -> Any:
    like = _storable(shape)
    with ocp.StandardCheckpointer() as reader:
        stored = reader.restore(folder.absolute(), like)
    # Orbax does not compare sizes.
    if jax.tree.map(np.shape, stored) != jax.tree.map(np.shape, like):
        raise CheckpointError(
            f"checkpoint = {folder.parent} is not allowed: its sizes are those of another version "
            "of jaxqmix"
        )
    return jax.tree.map(lambda leaf, like: leaf if like.size else like, stored, shape)


def read_about(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, with the defaults of settings that it does not know.

    Raises:
      CheckpointError: when it has settings that are not known here.
      Exception: one of many, when it is damaged or not ours.
    """
    about = json.loads((folder / "about" / "metadata").read_text())
    try:
        return about | {"config": to_dict(from_dict(about["config"]))}
    except ConfigError as error:
        raise CheckpointError(
            f"checkpoint = {folder} is not allowed: it is of another version of jaxqmix: {error}"
        ) from None


FLOWN = ("episodes", "seed", "symmetric")
"""Settings of periodic evaluations that `best` depends on; the others may change in a run."""


def check_settings(run: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises `CheckpointError` naming the first setting that resuming would change."""
    fixed = {name: asked[name] for name in ("env", "domain", "learner", "replay", "training")}
    fixed |= {"evaluation": {name: asked["evaluation"][name] for name in FLOWN}}
    for section, settings in fixed.items():
        for name, value in settings.items():
            if (section, name) == ("env", "city"):
                continue  # a city may move: its checksum tells
            before = saved[section].get(name)
            if json.dumps(before) != json.dumps(value):
                raise CheckpointError(
                    f"{section}.{name} = {value} is not allowed: {run} was trained with {before}, "
                    "and --resume continues a run unchanged"
                )


def check_devices(run: Path, before: int | None, trainer: Trainer) -> None:
    """Warns that a run on another number of devices goes on with other random numbers; raises
    `CheckpointError` where its replay store is spread over them."""
    now = trainer.mesh.size
    if before in (None, now):
        return
    spread = f"{run} was trained on {before}"
    if trainer.config.training.mode == "replay":
        raise CheckpointError(
            f"devices = {now} is not allowed: {spread}, over which its replay store is spread"
        )
    warnings.warn(f"devices = {now}, and {spread}: it resumes, but not bit for bit", stacklevel=4)


def find(path: Path) -> list[Path]:
    """Checkpoint folders that a path may mean, the preferred one first.

    Raises:
      CheckpointError: when there is none.
    """
    if (path / "about").is_dir():
        return [path]
    if path.parent.name == FOLDER:
        path, kinds = path.parent.parent, (path.name,)
    else:
        kinds = ("final", "best", "latest")
    found = [path / FOLDER / kind / str(step) for kind in kinds for step in steps_of(path, kind)]
    require_found(bool(found), path)
    return found


def load(path: Path) -> tuple[RunConfig, Parameters, int]:
    """A trained policy.

    Args:
      path: a run's folder (its final checkpoint, else the best, else the latest), or a checkpoint.

    Returns:
      The run's config, the averaged parameters and the checkpoint's step.

    Raises:
      CheckpointError: when it is missing, damaged or foreign.
    """

    def read(folder: Path) -> tuple[RunConfig, Parameters, int]:
        about = read_about(folder)
        config = from_dict(about["config"])
        # The policy's shape needs no city file, which may have moved.
        shape = _empty_like(make_trainer(without_city(config))).learner.average
        return config, _read(folder / "policy", shape), about["step"]

    return first_readable(find(Path(path)), read, path)[1]
