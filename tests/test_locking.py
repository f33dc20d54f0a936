"""Two processes in one folder, threads, processes that die, and file systems without locks."""

import errno
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jaxqmix import locking
from jaxqmix.config import ConfigError
from jaxqmix.locking import LOCK, locked

HOLD = (
    "import sys; from pathlib import Path; from jaxqmix.locking import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
)


@pytest.fixture(name="other")
def other_fixture(tmp_path):
    """Another process that holds a folder which it made."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_second_process_is_told_of_the_first(other, tmp_path):
    words = f"process {other.pid} on {socket.gethostname()} is writing there"
    with pytest.raises(ConfigError, match=words), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / LOCK).exists()


def test_a_lock_dies_with_its_process(other, tmp_path):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()


def test_a_lock_ends_with_its_process(other, tmp_path):
    other.communicate()
    assert not (tmp_path / "run").exists()


def test_threads_exclude_each_other_and_a_folder_is_free_again(tmp_path):
    run = tmp_path / "a" / "run"
    for _ in range(2):
        with locked(run):
            (run / "kept").touch()
            with pytest.raises(ConfigError, match="is writing there"), locked(run):
                pass
    assert [path.name for path in run.iterdir()] == ["kept"]


def test_a_folder_that_stays_empty_is_removed_again(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_file_that_was_removed_meanwhile_is_opened_again(tmp_path, monkeypatch):
    """Whoever waited for it would hold a lock that nobody else sees."""
    run, tries = tmp_path / "run", []

    def lock(descriptor):
        tries.append(descriptor)
        if len(tries) == 1:
            (run / LOCK).unlink()
        return True

    monkeypatch.setattr(locking, "lock_file", lock)
    with locked(run):
        assert len(tries) == 2 and (run / LOCK).exists()


@pytest.mark.parametrize("place", ["file/run", "x" * 300])
def test_folders_that_cannot_be_made_are_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out = .* is not allowed: "), locked(tmp_path / place):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", unknown)
    with pytest.warns(UserWarning, match="knows no locks"), locked(tmp_path / "run"):
        pass


def test_windows_locks_a_byte_far_off(tmp_path, monkeypatch):
    """There the lock would keep others from reading who holds it."""
    taken = []

    def lock(descriptor, how, count):
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        if taken:
            raise OSError(errno.EACCES, "Permission denied")
        taken.append((place, how, count))

    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=lock))
    run = tmp_path / "run"
    with locked(run):
        assert taken == [(locking.FAR, 2, 1)]
        assert Path(run / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(ConfigError, match="is writing there"), locked(run):
            pass
    assert not run.exists()
