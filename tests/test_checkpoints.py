"""What a checkpoint survives: damage, strangers, and disks that are full."""

import contextlib
import dataclasses
import errno
import gc
import json
import re
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxqmix import checkpoints, folders, runner
from jaxqmix.checkpoints import CheckpointError, Checkpoints, load, restore, steps_of
from jaxqmix.config import ConfigError, NotFiniteError, from_dict
from jaxqmix.training import Trainer, make_trainer
from jaxqmix.validate import MISSION

TRAINER = make_trainer(MISSION)
SHAPES = TRAINER.state_shapes


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """Shapes of the mission's state are always the same, and take a second to trace."""
    trace = Trainer.state_shapes.fget
    known = property(lambda self: SHAPES if self.config == MISSION else trace(self))
    monkeypatch.setattr(Trainer, "state_shapes", known)


def random_state(seed):
    """A training state of random numbers; nothing is compiled."""
    draw = np.random.default_rng(seed)

    def fill(leaf):
        if np.issubdtype(leaf.dtype, np.floating):
            return draw.normal(size=leaf.shape).astype(leaf.dtype)
        return draw.integers(0, 2, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(fill, SHAPES)


STATES = {step: random_state(step) for step in (3, 5)}


@pytest.fixture(scope="module", name="written")
def written_fixture(tmp_path_factory):
    """A run with two checkpoints of a kind to resume, and the best."""
    run = tmp_path_factory.mktemp("runs") / "written"
    writer = Checkpoints(run, MISSION, begun=0)
    for step, state in STATES.items():
        writer.save("latest", step, state, {"best_return": step / 7})
    writer.save("best", 3, STATES[3])
    return run


@pytest.fixture(name="run")
def run_fixture(written, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(written, tmp_path / "run")


def restored(run):
    step, state = restore(run, TRAINER)
    return step, jax.device_get(state)


def test_what_is_saved_is_read_back(run):
    step, state = restored(run)
    assert step == 5
    chex.assert_trees_all_equal(state, STATES[5])
    config, policy, step = load(run)
    assert (config, step) == (MISSION, 3)  # the best
    chex.assert_trees_all_equal(policy, STATES[3].learner.ema)
    assert checkpoints.notes_of(run, "latest", 5) == {"best_return": 5 / 7}
    assert checkpoints.notes_of(run, "latest", 4) == {}


@pytest.mark.parametrize(
    "text", [None, "", "[]", "\xff", "{", "[" * 10**5, '{"env": {"drones": 0}}']
)
def test_settings_that_were_lost_are_known_by_the_checkpoints(run, text):
    """A run resumes without its config.json, and writes it anew."""
    file = run / "config.json"
    if text is not None:
        file.write_bytes(text.encode("latin1"))
    folders.check_folder(run, resume=True)
    with pytest.warns(UserWarning, match=r"config.json is missing or damaged: it is written anew"):
        assert runner.restore(run, TRAINER)[0] == 5
    folders.make_folder(run, MISSION)
    assert from_dict(json.loads(file.read_text())) == MISSION


def files_of(folder):
    """Files that hold arrays or describe them, the largest first."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return sorted(files, key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("seed", range(9))
def test_any_flipped_byte_is_noticed(run, seed):
    """And the checkpoint before it is resumed."""
    draw = np.random.default_rng(seed)
    folder = run / "checkpoints" / "latest" / "5"
    files = files_of(folder)
    files = [file for file in files if "state" in file.parts]
    file = files[0] if seed < 6 else files[draw.integers(len(files))]
    data = bytearray(file.read_bytes())
    place = draw.integers(len(data))
    if seed == 0:
        data[-4096:] = bytes(len(data[-4096:]))
    else:
        data[place] ^= 1 << draw.integers(8)
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=r"5 is damaged \(files of state are not what was written"):
        step, state = restored(run)
    assert step == 3
    chex.assert_trees_all_equal(state, STATES[3])


def test_arrays_that_come_out_otherwise_are_noticed(run, monkeypatch):
    """Whatever the files say: the checksums of the leaves were taken before they were written."""
    latest = run / "checkpoints" / "latest"
    shutil.rmtree(latest / "5" / "state")
    shutil.copytree(latest / "3" / "state", latest / "5" / "state")
    about = json.loads((latest / "5" / "about.json").read_text())
    about["files"]["state"] = checkpoints.file_checksums(latest / "5" / "state")
    (latest / "5" / "about.json").write_text(json.dumps(checkpoints.sealed(about)))
    with pytest.warns(
        UserWarning, match=r"5 is damaged \(arrays of state are not what was written"
    ):
        assert restored(run)[0] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about["config"]["env"].update(horizon=21), "not what was written"),
        (lambda about: about["notes"].update(best_return=9.0), "not what was written"),
        (lambda about: about.update(confib=about.pop("config")), "not what was written"),
        (lambda about: about.pop("checksum"), "not what was written"),
    ],
)
def test_a_changed_description_is_damage(run, change, words):
    file = run / "checkpoints" / "latest" / "5" / "about.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    with pytest.warns(UserWarning, match=rf"5 is damaged \(its description is {words}"):
        assert restored(run)[0] == 3


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "[" * 10**5, "\xff", "", "{}"])
def test_a_description_of_anything_is_damage(run, text):
    (run / "checkpoints" / "latest" / "5" / "about.json").write_bytes(text.encode("latin1"))
    with pytest.warns(UserWarning, match="5 is damaged"):
        assert restored(run)[0] == 3


def test_another_schema_is_of_another_version(run):
    file = run / "checkpoints" / "latest" / "5" / "about.json"
    about = json.loads(file.read_text()) | {"schema": 7}
    file.write_text(json.dumps(checkpoints.sealed(about)))
    with pytest.raises(CheckpointError, match=r"another version of jaxqmix: schema 7.* reads 3"):
        restored(run)
    file.unlink()
    (file.parent / "about").mkdir()
    (file.parent / "about" / "metadata").write_text("{}")
    with pytest.raises(CheckpointError, match="another version of jaxqmix: schema 1"):
        load(file.parent)


def test_a_renamed_checkpoint_is_not_believed(run):
    latest = run / "checkpoints" / "latest"
    (latest / "5").rename(latest / "9999")
    with pytest.warns(UserWarning, match=r"9999 is damaged \(its description says step 5\)"):
        step, _ = restored(run)
    assert step == 3
    Checkpoints(run, MISSION, begun=3)
    assert steps_of(run, "latest") == [3]
    assert (run / "checkpoints" / "damaged" / "latest-9999").is_dir()


@pytest.mark.parametrize("name", ["0005", "\u0665", "\u00b2", "+7", "-7", "7.5", "7_0", "9" * 5000])
def test_folders_with_odd_names_are_no_checkpoints(run, name):
    with contextlib.suppress(OSError):  # too long
        (run / "checkpoints" / "latest" / name).mkdir()
    assert steps_of(run, "latest") == [5, 3]


def test_a_file_in_the_place_of_a_folder_is_named(run):
    for place in (run / "checkpoints" / "final", run / "checkpoints"):
        shutil.rmtree(place, ignore_errors=True)
        place.touch()
        with pytest.raises(
            CheckpointError, match=rf"{re.escape(str(place))} is not allowed: .*fil"
        ):
            restored(run)


def test_sizes_are_bounded_before_anything_is_allocated(run, monkeypatch):
    """A description may ask for as much as it likes."""
    file = run / "checkpoints" / "latest" / "5" / "about.json"

    def ask(**changes):
        about = json.loads(file.read_text())
        about["config"]["learner"] |= changes
        file.write_text(json.dumps(checkpoints.sealed(about)))

    def never(*_, **__):
        raise AssertionError("allocated")

    # In the module alone: tracing, too, makes arrays.
    own = {name: getattr(np, name) for name in ("asarray", "issubdtype", "floating", "isfinite")}
    monkeypatch.setattr(checkpoints, "np", types.SimpleNamespace(**own, zeros=never))
    monkeypatch.setattr(checkpoints, "host_memory", lambda: 10**10)
    ask(hidden=2**16)
    with pytest.raises(CheckpointError, match=r"asks for .* MB, and the machine has 10,000.0 MB"):
        load(file.parent)
    ask(hidden=10**12)
    with pytest.raises(CheckpointError, match=r"learner.hidden = 10+ is not allowed: must lie"):
        load(file.parent)
    ask(hidden=64, layers=2)
    with pytest.raises(CheckpointError, match="sizes are those of another version"):
        load(file.parent)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    weights = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), STATES[5].learner.parameters)
    learner = dataclasses.replace(STATES[5].learner, parameters=weights)
    writer = Checkpoints(tmp_path, MISSION, begun=0)
    writer.save("latest", 3, STATES[3])
    with pytest.raises(NotFiniteError, match=r"parameters.*agent.* is not finite"):
        writer.save("latest", 5, dataclasses.replace(STATES[5], learner=learner))
    assert restored(tmp_path)[0] == 3


def test_older_checkpoints_go_when_new_ones_are_whole(tmp_path):
    (tmp_path / "checkpoints" / "latest" / ".4.part" / "policy").mkdir(parents=True)
    writer = Checkpoints(tmp_path, MISSION, begun=0)
    for step in (1, 2, 3):
        writer.save("latest", step, STATES[3])
    names = sorted(place.name for place in (tmp_path / "checkpoints" / "latest").iterdir())
    assert names == ["2", "3"] and MISSION.checkpoint.keep == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (ValueError("INTERNAL: write: File too large [source locations='x.cc']"), "File too large"),
        (PermissionError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    ],
)
def test_a_full_disk_gets_one_line_and_costs_no_checkpoint(run, monkeypatch, error, words):
    def full(*_, **__):
        raise error

    writer = Checkpoints(run, MISSION, begun=5)
    monkeypatch.setattr(checkpoints.ocp.Checkpointer, "save", full)
    with pytest.raises(CheckpointError, match=rf"7 could not be written: {words}; it takes") as one:
        writer.save("latest", 7, STATES[5])
    assert "\n" not in str(one.value) and "MB are free" in str(one.value)
    assert restored(run)[0] == 5
    names = sorted(place.name for place in (run / "checkpoints" / "latest").iterdir())
    assert names == ["3", "5"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_file_that_may_not_grow_gets_one_line_and_no_threads_traceback(tmp_path):
    """Whole, in a process of its own: Orbax writes in threads, and they print what they raise."""
    code = (
        "import resource, sys; from pathlib import Path; import test_checkpoints as t\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: t.Checkpoints(Path(sys.argv[1]), t.MISSION, begun=0).save('latest', 3, t.STATES[3])\n"
        "except t.CheckpointError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 could not be written: File too large" in done.stdout
    assert not list((tmp_path / "run").rglob("*.part"))


def test_space_is_asked_for_before_the_first_save(tmp_path, monkeypatch):
    checkpoints.require_space([tmp_path], MISSION, STATES[5])
    usage = shutil.disk_usage(tmp_path)._replace(free=10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"checkpoints take .* MB and 0.1 MB are free"):
        checkpoints.require_space([tmp_path / "not" / "yet"], MISSION, STATES[5])


def test_threads_of_one_process_may_save_at_once(tmp_path):
    """Each in a folder of its own, as two trainings in a notebook."""

    def many(run):
        writer = Checkpoints(run, MISSION, begun=0)
        for step in range(1, 5):
            writer.save("latest", step, STATES[3])

    threads = [threading.Thread(target=many, args=(tmp_path / name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [restored(tmp_path / name)[0] for name in "ab"] == [4, 4]


def test_many_loads_leave_a_silent_exit(run):
    """Also of checkpoints that cannot be read."""
    broken = shutil.copytree(run, run.with_name("broken"))
    for file in broken.rglob("manifest.ocdbt"):
        file.unlink()
    code = (
        "import functools, sys; from pathlib import Path; from jaxqmix import checkpoints\n"
        "from jaxqmix.config import ConfigError; load = checkpoints.load\n"
        "checkpoints.make_parts = functools.cache(checkpoints.make_parts)\n"
        "for _ in range(20): load(Path(sys.argv[1]))\n"
        "for _ in range(2):\n"
        "    try: load(Path(sys.argv[2]))\n"
        "    except ConfigError: pass\n"
        "    else: sys.exit('loaded')\n"
    )
    command = [sys.executable, "-c", code, str(run), str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_loading_executes_nothing(run, tmp_path):
    """No code of the package reads pickles, and one in a run is not opened."""
    package = Path(checkpoints.__file__).parent
    words = re.compile(r"\bpickle\b|allow_pickle=True|\beval\(|\bexec\(|\bmarshal\b|joblib|dill")
    for file in package.rglob("*.py"):
        found = [line for line in file.read_text().splitlines() if words.search(line)]
        assert all("eval_shape" in line or "allow_pickle=False" in line for line in found), file
    trap = tmp_path / "sprung"
    hostile = b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    for file in (run / "checkpoints" / "latest" / "5").rglob("*"):
        if file.is_file():
            file.write_bytes(hostile)
    with pytest.warns(UserWarning, match="5 is damaged"):
        assert restored(run)[0] == 3
    gc.collect()
    assert not trap.exists()
