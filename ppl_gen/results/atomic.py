"""Files and folders that are either wholly there or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ppl_gen.errors import FitError


def resolved(path: str | Path) -> Path:
    """The folder itself, links followed, so that what is renamed is not a link to it."""
    return Path(path).expanduser().resolve()


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> bytes:
    """A file's content.

    Raises:
        FitError: it is missing, or cannot be read.

    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FitError(f"{path}: is missing from the saved fit") from None
    except OSError as error:
        raise FitError(f"{path}: cannot be read: {error.strerror or error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file and see it to the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush(folder: Path) -> None:
    """See a folder's entries to the disk, where the system lets a folder be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(aside: Path, home: Path) -> None:
    """Rename a finished folder to its own name, in place of what stands there.

    A folder cannot be renamed over another one that has files, so a replacement takes two renames. If the
    second fails the first is taken back; if the machine stops between them, `recover` does that later.
    """
    old, stood = previous(home), home.exists()
    if stood:
        shutil.rmtree(old, ignore_errors=True)  # left by a replacement that was cut short after its renames
        os.rename(home, old)
    try:
        os.rename(aside, home)
    except BaseException:
        if stood:
            os.rename(old, home)
        raise
    with suppress(OSError):  # the new folder stands; only when the disk learns of it is open
        flush(home.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(home: Path) -> None:
    """Put back what a replacement that was cut short had moved away.

    Raises:
        FitError: it cannot be put back; the message says where it is.

    """
    old = previous(home)
    if home.exists() or not old.exists():
        return
    try:
        os.rename(old, home)
    except OSError as error:
        raise FitError(f"{home}: its fit is in {old} and cannot be moved back: {error.strerror}") from error


def previous(home: Path) -> Path:
    """Where the old folder waits while it is being replaced."""
    return home.with_name(f".{home.name}.previous")
