"""Checkpoints of the whole training state, written by Orbax, with a description beside them.

A run keeps three kinds, each in a folder of its own: `latest` (periodic, to resume), `best` (by
evaluation) and `final`. One checkpoint is a folder named by its step:

  about.json   schema, step, config, devices, what the run notes, checksums of every leaf and of
               every file, and one of the description itself
  policy/      the EMA parameters
  state/       the whole `TrainState`

It is written beside its place and moved there when it is whole, so that a process may be killed at
any time. Checksums (CRC-32) find damage by chance, not by intent; but nothing in a checkpoint is
executed or names a file, and sizes are held against its config before anything is allocated.

Damaged checkpoints of a run that goes on are moved to `checkpoints/damaged`.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jaxqmix.compilation import require_float32, tree_bytes
from jaxqmix.config import ConfigError, NotFiniteError, RunConfig, from_dict, shown, to_dict
from jaxqmix.distributed import host_memory
from jaxqmix.env.base import Environment
from jaxqmix.learner.networks import Parameters
from jaxqmix.maps import without_city
from jaxqmix.metrics import runs_in
from jaxqmix.training import TrainState, make_parts

KINDS = ("latest", "best", "final")
FOLDER, DAMAGED, ABOUT = "checkpoints", "damaged", "about.json"
SCHEMA = 3
"""Of the description and the folders; another one is of another version."""
DESCRIPTIONS = 200_000
"""Bytes of a checkpoint beside its arrays, about."""
LARGEST_ABOUT = 10**6
"""Bytes of a description."""
_ORBAX = threading.RLock()
"""Orbax is called by one thread of a process at a time: two that save may wait for ever."""


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged, of another run, or could not be written."""


class DamageError(Exception):
    """What is wrong with a damaged checkpoint."""


class Checkpoints:
    """Writes a run's checkpoints."""

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
            for left in (run / FOLDER / kind).glob(".*"):
                shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
        self._keep = {"latest": config.checkpoint.keep, "best": 1, "final": 1}

    def save(
        self, kind: str, step: int, state: TrainState, notes: dict[str, Any] | None = None
    ) -> None:
        """Saves a state; an older save of the same step is kept as it is, unless it is damaged.

        Args:
          kind: `latest`, `best` or `final`.
          step: rollouts so far.
          state: arrays on the devices, or on the host.
          notes: of the run, kept in the description: plain JSON values.

        Raises:
          CheckpointError: when it could not be written; earlier ones stay.
          NotFiniteError: when the learner's state is not finite; the last save stays.
        """
        steps = steps_of(self._run, kind)
        if step in steps:
            # What this run has written itself is whole; only where it resumed lies an older save.
            if step > self._begun or self._is_whole(kind, step, state):
                return
            move_aside(self._run, kind, step)
        elif steps and steps[0] > step:
            folder = self._run / FOLDER / kind
            raise CheckpointError(
                f"checkpoint = {folder / str(step)} is not allowed: {folder} holds a newer one; "
                "does another run write there?"
            )
        state = jax.device_get(state)
        if wrong := not_finite(state.learner):
            raise NotFiniteError(f"the learner's {wrong} is not finite; it is not saved")
        arrays = {"policy": state.learner.ema, "state": state}
        about = {"config": self._config, "devices": self._devices, "step": step}
        about |= {"notes": notes or {}}
        self._write(kind, step, about, arrays)

    def _write(self, kind: str, step: int, about: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Writes a checkpoint beside its place, moves it there, and removes those too many."""
        folder = self._run / FOLDER / kind
        part = folder / f".{step}.part"
        # Arrays, and what names them.
        needed = sum(map(tree_bytes, arrays.values())) + DESCRIPTIONS
        try:
            with _ORBAX:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                reserve(part / "room", needed)
                # Compressing a replay store costs seconds of all cores, and halves it at best.
                with orbax_alone() as orbax:
                    for name, tree in arrays.items():
                        orbax.save((part / name).absolute(), ocp.args.PyTreeSave(_storable(tree)))
                about |= {
                    "schema": SCHEMA,
                    "leaves": {name: leaf_checksums(tree) for name, tree in arrays.items()},
                    "files": {name: file_checksums(part / name) for name in arrays},
                }
                text = json.dumps(sealed(about))
                (part / ABOUT).write_text(text + "\n", encoding="utf-8")
                part.rename(folder / str(step))
                for old in steps_of(self._run, kind)[self._keep[kind] :]:
                    # Out of the way first: half a checkpoint must not look like one.
                    gone = (folder / str(old)).rename(folder / f".{old}.old")
                    shutil.rmtree(gone, ignore_errors=True)
        except Exception as error:  # Orbax raises many kinds when a disk is full.
            shutil.rmtree(part, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint = {folder / str(step)} could not be written: {reason(error)}; "
                f"it takes {megabytes(needed)}, {megabytes(free_space(folder))} are free. "
                "Earlier checkpoints are whole: make room, and --resume"
            ) from None

    def _is_whole(self, kind: str, step: int, like: TrainState) -> bool:
        """Whether all parts of a checkpoint can be read, and are what was written."""
        folder = self._run / FOLDER / kind / str(step)
        try:
            about = read_about(folder)
            _read(folder, "policy", about, _shapes(like.learner.ema))
            _read(folder, "state", about, _shapes(like))
        except Exception:  # Orbax raises many kinds on a damaged file.
            return False
        return True


def orbax_alone() -> ocp.Checkpointer:
    """What reads and writes arrays, without waiting for other processes of the run: the first has
    the whole state, and writes it alone."""
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    number = jax.process_index()
    options = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        options = ocp.options.MultiprocessingOptions(
            primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"{number}"
        )
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def reserve(file: Path, size: int) -> None:
    """Asks for room on the disk, and gives it back; raises `OSError` where there is not so much.

    Orbax and TensorStore, when they meet a full disk, print pages from threads of their own.
    """
    if hasattr(os, "posix_fallocate"):
        with file.open("wb") as open_file:
            try:
                os.posix_fallocate(open_file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise  # and not of a file system that cannot tell
        file.unlink()


def reason(error: BaseException) -> str:
    """What went wrong, in few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    known = ("No space left on device", "File too large", "Disk quota exceeded", "Read-only")
    text = str(error)
    return next((each for each in known if each.lower() in text.lower()), shown(text))


def megabytes(size: float | None) -> str:
    """A size in words."""
    return "an unknown amount" if size is None else f"{size / 1e6:,.1f} MB"


def free_space(path: Path) -> int | None:
    """Bytes free where a path is, or will be."""
    try:
        place = next(each for each in (path, *path.absolute().parents) if each.exists())
        return shutil.disk_usage(place).free
    except (OSError, StopIteration):
        return None


def require_space(runs: Sequence[Path], config: RunConfig, state: TrainState) -> None:
    """Raises `ConfigError` when the checkpoints of runs do not fit on their disk; `state` is of all
    of them together."""
    each = (tree_bytes(state) + tree_bytes(state.learner.ema)) // len(runs)
    count = 0
    for run in runs:
        there = sum(len(steps_of(run, kind)) for kind in KINDS)
        # A new one is written before the old one goes.
        count += max(config.checkpoint.keep + 1 + 2 + 1 - there, 1)
    needed, free = each * count, free_space(runs[0])
    if free is not None and needed > free:
        raise ConfigError(
            f"out = {os.path.commonpath(runs)} is not allowed: checkpoints take "
            f"{megabytes(needed)} and {megabytes(free)} are free there; make room, or lower "
            "checkpoint.keep or "
            f"{'replay.capacity' if config.training.mode == 'replay' else 'training.swarms'}"
        )


def not_finite(tree: Any) -> str | None:
    """The name of the first leaf with a number that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None


def leaf_checksums(tree: Any) -> dict[str, int]:
    """A checksum (CRC-32) of every leaf of a tree of NumPy arrays, by its path."""
    return {
        jax.tree_util.keystr(path): zlib.crc32(
            np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data,
            zlib.crc32(f"{leaf.dtype} {leaf.shape}".encode()),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def file_checksums(folder: Path) -> dict[str, int]:
    """A checksum (CRC-32) of every file below a folder, by its path there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            checksum = 0
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    checksum = zlib.crc32(piece, checksum)
            found[path.relative_to(folder).as_posix()] = checksum
    return found


def sealed(about: dict[str, Any]) -> dict[str, Any]:
    """A description with its own checksum."""
    about = {name: value for name, value in about.items() if name != "checksum"}
    return about | {"checksum": zlib.crc32(json.dumps(about, sort_keys=True).encode())}


def steps_of(run: Path, kind: str) -> list[int]:
    """Steps of the finished checkpoints of a kind, newest first.

    Raises:
      CheckpointError: where a file stands in the place of their folder.
    """
    for folder in (run / FOLDER, run / FOLDER / kind):
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(
                f"checkpoint = {folder} is not allowed: it is a file, and must be a folder"
            )
    if not folder.is_dir():
        return []
    names = [place.name for place in folder.iterdir() if place.is_dir()]
    # As this module writes them: no sign, no leading zero, no digit of another script.
    steps = [name for name in names if name.isascii() and name.isdecimal() and len(name) <= 10]
    return sorted((int(name) for name in steps if str(int(name)) == name), reverse=True)


def saved_steps(run: Path) -> set[int]:
    """Steps of the finished checkpoints of all kinds."""
    return {step for kind in KINDS for step in steps_of(run, kind)}


def move_aside(run: Path, kind: str, step: int) -> None:
    """Moves a damaged checkpoint to `checkpoints/damaged`; parts may still be of use."""
    place = run / FOLDER / DAMAGED / f"{kind}-{step}"
    place.parent.mkdir(exist_ok=True)
    count = itertools.count(2)
    while place.exists():
        place = place.with_name(f"{kind}-{step}-{next(count)}")
    (run / FOLDER / kind / str(step)).rename(place)


class Resumable(Protocol):
    """What `restore` asks of a `Trainer`, or of whatever else trains."""

    @property
    def config(self) -> RunConfig:
        """Whose settings a checkpoint must have."""

    @property
    def mesh(self) -> Mesh:
        """The devices that the state is spread over."""

    @property
    def state_shapes(self) -> Any:
        """Shapes, types and places of the state."""

    def place(self, state: Any) -> Any:
        """Puts a state on the devices."""


def restore(run: Path, trainer: Resumable) -> tuple[int, Any]:
    """The newest readable training state of a run, on the devices; see `read_state`."""
    step, state = read_state(run, trainer)
    return step, trainer.place(state)


def read_state(run: Path, trainer: Resumable, until: int | None = None) -> tuple[int, Any]:
    """The newest readable training state of a run, of any kind, as NumPy arrays.

    A damaged checkpoint is passed over with a warning.

    Args:
      run: its folder.
      trainer: of the run.
      until: no newer step than this.

    Returns:
      Its step and state.

    Raises:
      CheckpointError: when there is none, or none can be read, or it was made with other settings
        or, in mode `replay`, on another number of devices.
    """
    found = sorted(
        (
            (step, run / FOLDER / kind / str(step))
            for kind in KINDS
            for step in steps_of(run, kind)
            if until is None or step <= until
        ),
        key=lambda item: -item[0],
    )
    require_found(bool(found), run)
    shape = trainer.state_shapes

    def read(folder: Path) -> Any:
        about = read_about(folder)
        check_settings(run, about["config"], to_dict(trainer.config))
        check_devices(run, about.get("devices"), trainer)
        return _read(folder, "state", about, shape)

    place, state = first_readable([folder for _, folder in found], read, run)
    return int(place.name), state


def notes_of(run: Path, kind: str, step: int) -> dict[str, Any]:
    """What the run noted in a checkpoint's description; nothing where that cannot be read."""
    try:
        return read_about(run / FOLDER / kind / str(step))["notes"]
    except Exception:  # of many kinds; whoever needs the checkpoint says so
        return {}


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
            what = error if isinstance(error, DamageError) else type(error).__name__
            damaged.append(f"checkpoint {folder} is damaged ({what})")
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
        refuse_missing(path)


def refuse_missing(path: Path) -> NoReturn:
    """Raises `CheckpointError`: a path holds no checkpoint."""
    allowed = "must be a run's folder or a checkpoint in it"
    if runs := runs_in(path):
        allowed = f"it holds {len(runs)} runs: give one of them, such as {runs[0]}"
    raise CheckpointError(f"checkpoint = {path} is not allowed: {allowed}")


def saved_scale(run: Path) -> str:
    """The scale of the run, or the runs of seeds, in a folder, from its settings; `cpu` where they
    do not say."""
    try:
        run = next(iter(runs_in(run)), run)
        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return settings.get("scale", "cpu")
    except (OSError, ValueError, AttributeError):  # Whoever resumes the run says what is wrong.
        return "cpu"


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _storable(tree: Any) -> Any:
    """A tree with a placeholder for empty arrays: Orbax refuses to store those."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else np.zeros(1, leaf.dtype), tree)


def _read(folder: Path, name: str, about: dict[str, Any], shape: Any) -> Any:
    """A part of a checkpoint as NumPy arrays.

    Args:
      folder: of the checkpoint.
      name: `policy` or `state`.
      about: of `read_about`.
      shape: a tree of shapes; nothing of other sizes is allocated.

    Raises:
      CheckpointError: when its sizes are others, or no machine's.
      Exception: one of many, when it is damaged.
    """
    needed, there = tree_bytes(shape), host_memory()
    if there is not None and needed > there:
        raise CheckpointError(
            f"checkpoint = {folder} is not allowed: its config asks for {megabytes(needed)}, and "
            f"the machine has {megabytes(there)}"
        )
    # Asked first, for TensorStore fills the screen when it meets a damaged file.
    if file_checksums(folder / name) != about["files"][name]:
        raise DamageError(f"files of {name} are not what was written")
    expected = [leaf.shape if leaf.size else (1,) for leaf in jax.tree.leaves(shape)]
    with _ORBAX, orbax_alone() as orbax:
        place = (folder / name).absolute()
        found = orbax.metadata(place).item_metadata.tree
        sizes = [each.shape for each in jax.tree.leaves(found)]
        if sorted(sizes) != sorted(expected):
            raise CheckpointError(
                f"checkpoint = {folder} is not allowed: its sizes are those of another version "
                "of jaxqmix"
            )
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shape)
        stored = orbax.restore(place, ocp.args.PyTreeRestore(_storable(empty)))
    tree = jax.tree.map(
        lambda leaf, like: np.asarray(leaf, like.dtype) if like.size else like, stored, empty
    )
    if leaf_checksums(tree) != about["leaves"][name]:
        raise DamageError(f"arrays of {name} are not what was written")
    if wrong := not_finite(tree.learner if name == "state" else tree):
        raise DamageError(f"{wrong} is not finite")
    return tree


def read_about(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, with the defaults of settings that it does not know.

    Raises:
      CheckpointError: when it is of another version, for example has settings not known here.
      Exception: one of many, when it is damaged or not ours.
    """
    path, version = folder / ABOUT, f"checkpoint = {folder} is not allowed: it is of another"
    version += " version of jaxqmix: "
    if (folder / "about" / "metadata").is_file() and not path.exists():
        raise CheckpointError(f"{version}schema 1, and this one reads {SCHEMA}")
    with path.open("rb") as file:
        about = json.loads(file.read(LARGEST_ABOUT + 1))
    if not isinstance(about, dict) or sealed(about)["checksum"] != about.get("checksum"):
        raise DamageError("its description is not what was written")
    if about["schema"] != SCHEMA:
        raise CheckpointError(f"{version}schema {about['schema']}, and this one reads {SCHEMA}")
    if str(about["step"]) != folder.name:
        raise DamageError(f"its description says step {about['step']}")
    try:
        return about | {"config": to_dict(from_dict(about["config"]))}
    except ConfigError as error:
        raise CheckpointError(f"{version}{error}") from None


FLOWN = ("episodes", "seed", "symmetric")
"""Settings of periodic evaluations that `best` depends on; the others may change in a run."""


def check_settings(run: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises `CheckpointError` naming the first setting that resuming would change."""
    fixed = {name: asked[name] for name in ("env", "domain", "learner", "replay", "training")}
    fixed |= {"evaluation": {name: asked["evaluation"][name] for name in FLOWN}}
    before, now = saved.get("world"), asked.get("world")
    if before != now:
        raise CheckpointError(
            f"world = {now} is not allowed: {run} was trained in {before or 'its city'}; in "
            "Python, env says in which world of one's own a run flies"
        )
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


def check_devices(run: Path, before: int | None, trainer: Resumable) -> None:
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
    if (path / ABOUT).is_file() or (path / "about").is_dir():
        return [path]
    if path.parent.name == FOLDER:
        path, kinds = path.parent.parent, [path.name]
    else:
        kinds = ["final", "best", "latest"]
    found = [path / FOLDER / kind / str(step) for kind in kinds for step in steps_of(path, kind)]
    require_found(bool(found), path)
    return found


def load(path: Path, env: Environment | None = None) -> tuple[RunConfig, Parameters, int]:
    """A trained policy.

    Args:
      path: a run's folder (its final checkpoint, else the best, else the latest), or a checkpoint.
      env: the world that it was trained in, where that is another than the config's.

    Returns:
      The run's config, the EMA parameters and the checkpoint's step.

    Raises:
      CheckpointError: when it is missing, damaged or foreign.
      ConfigError: with JAX's 64-bit numbers, which checkpoints do not hold.
    """
    require_float32()
    jax.devices()  # A device that cannot be used is no damage; raises.

    def read(folder: Path) -> tuple[RunConfig, Parameters, int]:
        about = read_about(folder)
        config = from_dict(about["config"])
        if config.world and env is None:
            raise CheckpointError(
                f"checkpoint = {path} is not allowed: it was trained in {config.world}, a world of "
                "its own; load it in Python: load_policy(path, env=...)"
            )
        # The policy's shape needs no city file, which may have moved.
        _, learner = make_parts(without_city(config), axis=None, env=env)
        shape = jax.eval_shape(learner.init, jax.random.key(0)).ema
        return config, _read(folder, "policy", about, shape), about["step"]

    return first_readable(find(Path(path)), read, path)[1]
