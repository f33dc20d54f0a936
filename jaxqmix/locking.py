"""One process at a time writes in a run's folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxqmix.config import ConfigError, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file that is held open; it says who holds it."""
FAR = 2**30
"""The byte that Windows locks: it keeps others from reading what is locked."""
UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems answer that know no locks."""


def lock_file(descriptor: int) -> bool:
    """Takes the advisory lock of an open file; False where somebody else has it.

    The system gives it back when the process ends, however it ends.
    """
    try:
        if fcntl is None:
            import msvcrt

            os.lseek(descriptor, FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNKNOWN:
            warnings.warn(
                "this file system knows no locks: start no second run there", stacklevel=4
            )
            return True
        return False
    return True


def open_locked(path: Path) -> int | None:
    """Opens and locks a file; None where somebody else holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not lock_file(descriptor):
            os.close(descriptor)
            return None
        # Whoever held it may have removed the file meanwhile, and then its lock is nobody's.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


def remove_empty(folders: list[Path]) -> None:
    """Removes folders, the innermost first, as long as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run's folder while the block runs; makes the folder, and removes it if left empty.

    Raises:
      ConfigError: when another process, or another thread, holds it, or it cannot be made.
    """
    new, path = [], folder / LOCK
    try:
        new = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_locked(path)
    except OSError as error:
        remove_empty(new)
        raise ConfigError(f"out = {shown(folder)} is not allowed: {error.strerror}") from None
    if descriptor is None:
        raise ConfigError(f"out = {shown(folder)} is not allowed: {holder(path)} is writing there")
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if fcntl is None:  # Windows removes no file that is open.
            os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        if fcntl is not None:
            os.close(descriptor)
        remove_empty(new)


def holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return shown(file.read(200)) or "another process"
    except OSError:
        return "another process"
