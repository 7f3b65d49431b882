"""One process at a time in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from ppl_gen.errors import FitError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"


class Claim:
    """A folder that this process alone writes in, until `release` or the end of this object."""

    def __init__(self, home: Path, descriptor: int) -> None:
        self.process = os.getpid()
        self.release = finalize(self, _released, home / LOCK, descriptor, self.process)


_OURS: WeakValueDictionary[Path, Claim] = WeakValueDictionary()  # POSIX locks do not count within a process


def claim(home: Path) -> Claim | None:
    """Claim a folder; None where the system or the file system has no locks, or nothing can be written.

    Raises:
        FitError: another process has claimed it.

    """
    known = _OURS.get(home)
    if known is not None and known.release.alive and known.process == os.getpid():
        return known
    descriptor = _locked(home / LOCK)
    if descriptor is None:
        return None
    found = _OURS[home] = Claim(home, descriptor)
    return found


def _locked(path: Path) -> int | None:
    """An open file with the lock on it."""
    if sys.platform == "win32":
        return None
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # whoever writes next will say it
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # deleted by the one before, as it ended
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise FitError(f"{path.parent}: another process is writing its checkpoints here") from None
            return None


def _released(path: Path, descriptor: int, process: int) -> None:
    if os.getpid() != process:  # a fork's copy; the lock stayed with its process
        return
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        os.close(descriptor)
