"""Checkpoints as folders: state.safetensors beside state.json, hashed; written aside, flushed and renamed.

history.csv stands in each of them and beside them, for whoever looks; nothing of it is read again.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes

from ppl_gen.errors import FitError
from ppl_gen.infer.callbacks import history_csv
from ppl_gen.infer.checkpoints import Checkpoints, Snapshot, packed, unpacked
from ppl_gen.results.atomic import digest, flush, put_in_place, resolved, write
from ppl_gen.results.claims import LOCK, Claim, claim

FORMAT = 3
TENSORS, RECORD, HISTORY = "state.safetensors", "state.json", "history.csv"
NAME = re.compile(r"checkpoint-(\d{8})")
ASIDE = re.compile(r"\.[0-9a-f]{8}(\.csv)?")  # what a crash may leave
KEPT = 2


@dataclass
class CheckpointFolder:
    """The checkpoints of one run; see `Keeper`.

    Args:
        checkpoints: where and how often.
        identity: whose run it is, as JSON: declaration, algorithm, seed, data.
        good: those that are whole, oldest first; all others are deleted when the next one is written.
        claimed: what keeps other processes out of the folder, where anything does.

    """

    checkpoints: Checkpoints
    identity: Mapping[str, Any]
    good: list[Path] = field(default_factory=list)
    claimed: Claim | None = None

    @property
    def home(self) -> Path:
        """The folder of all of them."""
        return resolved(self.checkpoints.path)

    def prepare(self) -> None:
        """Make the folder for a new run, and find out whether it can be written.

        Raises:
            FitError: there are checkpoints already, something else is there, another process writes there, or
                it cannot be written.

        """
        home, path = self.home, self.checkpoints.path
        try:
            home.mkdir(parents=True, exist_ok=True)
            strange = [own.name for own in home.iterdir() if not _ours(own)]
            if strange:
                raise FitError(
                    f"{path}: holds {strange[0]!r}, which is no checkpoint; name a folder of its own"
                )
            self.claimed = claim(home)
            if any(_numbered(home)) and not self.checkpoints.replace:
                raise FitError(
                    f"{path}: holds the checkpoints of a run already; resume it, or delete them by replace=True "
                    "(--replace)"
                )
            for old in home.iterdir():
                if old.name != LOCK:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            probe = home / f".{secrets.token_hex(4)}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise FitError(f"{path}: checkpoints cannot be written: {error.strerror or error}") from error

    def keep(self, snapshot: Snapshot) -> str | None:
        """Store a snapshot; what went wrong, or None."""
        home = self.home
        aside = home / f".{secrets.token_hex(4)}"
        try:
            last = max((number for number, _ in _numbered(home)), default=0)
            contents = _contents(snapshot, self.identity)
            aside.mkdir()
            for name, content in contents.items():
                write(aside / name, content)
            flush(aside)
            new = home / f"checkpoint-{last + 1:08d}"
            put_in_place(aside, new)
        except (OSError, FitError) as error:  # FitError: an optimiser remembers what no file can hold
            shutil.rmtree(aside, ignore_errors=True)
            what = (isinstance(error, OSError) and error.strerror) or error
            return f"a checkpoint could not be written to {self.checkpoints.path}: {what}"
        self.good = [*self.good, new][-KEPT:]
        with suppress(OSError):  # the checkpoint stands
            self._tidy(contents[HISTORY])
        return None

    def release(self) -> None:
        """Let other processes in."""
        if self.claimed is not None:
            self.claimed.release()

    def _tidy(self, history: bytes) -> None:
        """Delete what is not kept, and show the history."""
        for old in self.home.iterdir():
            if old.is_dir() and _ours(old) and old not in self.good:
                shutil.rmtree(old, ignore_errors=True)
            elif ASIDE.fullmatch(old.name):
                old.unlink()
        aside = self.home / f".{secrets.token_hex(4)}.csv"
        write(aside, history)
        aside.replace(self.home / HISTORY)


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint of a folder.

    Args:
        path: its own folder.
        identity: whose run it is.
        snapshot: what the run goes on from.
        refused: of each newer one that is damaged, why.

    """

    path: Path
    identity: dict[str, Any]
    snapshot: Snapshot
    refused: tuple[str, ...]


def newest(path: str | Path) -> Found:
    """The newest checkpoint that is whole.

    Args:
        path: the folder of a run's checkpoints.

    Raises:
        FitError: there is none; what is wrong with each is said.

    Example:
        >>> newest("no/such/run")
        Traceback (most recent call last):
        ...
        ppl_gen.errors.FitError: no/such/run: no checkpoints here: the folder does not exist

    """
    refused = []
    for folder in _newest_first(path):
        try:
            identity, snapshot = _read(folder)
        except FitError as error:
            refused.append(str(error))
            continue
        return Found(folder, identity, snapshot, tuple(refused))
    if refused:
        raise FitError(f"{path}: no checkpoint is whole: {'; '.join(refused)}")
    raise FitError(f"{path}: no checkpoints here: the run ended before its first; fit again")


def _newest_first(path: str | Path) -> list[Path]:
    """The checkpoints of a folder, damaged ones too.

    Raises:
        FitError: it is no folder of checkpoints, or cannot be read.

    """
    home = resolved(path)
    if not home.is_dir():
        what = "it is not a folder" if home.exists() else "the folder does not exist"
        raise FitError(f"{path}: no checkpoints here: {what}")
    if (home / "fit.json").is_file():
        raise FitError(f"{path}: is a saved fit, and no folder of checkpoints; load reads it")
    if NAME.fullmatch(home.name) and (home / RECORD).exists():
        raise FitError(f"{path}: is one checkpoint of a run; name the folder that it is in, {home.parent}")
    try:
        return [folder for _, folder in sorted(_numbered(home), reverse=True)]
    except OSError as error:
        raise FitError(f"{path}: cannot be read: {error.strerror or error}") from error


def _contents(snapshot: Snapshot, identity: Mapping[str, Any]) -> dict[str, bytes]:
    tensors: dict[str, Any] = {}
    record = {"format": FORMAT, "identity": dict(identity), "state": packed(snapshot, tensors, "")}
    stored = tensors_as_bytes(tensors)
    record["sha256"] = {TENSORS: digest(stored), RECORD: ""}
    record["sha256"][RECORD] = digest(_canonical(record))
    history = history_csv(snapshot["history"], snapshot["held_out"])
    return {
        TENSORS: stored,
        RECORD: json.dumps(record, allow_nan=False).encode(),
        HISTORY: history.encode(),
    }


def _read(folder: Path) -> tuple[dict[str, Any], Snapshot]:
    """Whose run a checkpoint is of, and its snapshot.

    Raises:
        FitError: a file is missing, truncated or altered.

    """
    files = {name: folder / name for name in (RECORD, TENSORS)}
    try:
        contents = {name: file.read_bytes() for name, file in files.items()}
    except OSError as error:
        raise FitError(f"{error.filename}: cannot be read: {error.strerror}") from error
    try:
        record = json.loads(contents[RECORD])
        sums, format_ = dict(record["sha256"]), record["format"]
        record["sha256"][RECORD] = ""
        own = digest(_canonical(record))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FitError(f"{files[RECORD]}: is damaged: it is no record of a checkpoint ({error!r})") from error
    if format_ != FORMAT:
        raise FitError(f"{files[RECORD]}: has format {format_!r}, and this version reads {FORMAT}")
    for name, sum_ in ((RECORD, own), (TENSORS, digest(contents[TENSORS]))):
        if sums.get(name) != sum_:
            raise FitError(f"{files[name]}: is not the file that was written: its SHA-256 differs")
    try:
        return record["identity"], unpacked(record["state"], read_tensors(contents[TENSORS]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FitError(f"{folder}: cannot be read by this version: {error!r}") from error


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _numbered(home: Path) -> Iterator[tuple[int, Path]]:
    for own in home.iterdir() if home.is_dir() else ():
        if own.is_dir() and (found := NAME.fullmatch(own.name)):
            yield int(found[1]), own


def _ours(path: Path) -> bool:
    """Whether an entry of the folder is one of ours: a checkpoint, what a crash left of one, the history."""
    left = ASIDE.fullmatch(path.name) or re.fullmatch(r"\.checkpoint-\d{8}\.previous", path.name)
    return bool(NAME.fullmatch(path.name) or left or path.name in (HISTORY, LOCK))
