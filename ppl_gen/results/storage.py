"""A Fit as a folder: spec.yaml, params.safetensors, fit.json; written aside and renamed, never unpickled.

Beside them stands history.csv for whoever looks; nothing of it is read again.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes

from ppl_gen.certify.certificate import Certificate
from ppl_gen.data.schema import Schema
from ppl_gen.declare.files import read_spec, write_spec
from ppl_gen.declare.scope import parts_of
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Net
from ppl_gen.errors import FitError, SpecError
from ppl_gen.infer.callbacks import history_csv
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.status import Status
from ppl_gen.program.own import check_registered, own_families
from ppl_gen.program.program import Program
from ppl_gen.results.atomic import digest, flush, put_in_place, read, recover, resolved, write
from ppl_gen.results.fit import Fit

FORMAT = 1
SPEC, PARAMETERS, RECORD, HISTORY = "spec.yaml", "params.safetensors", "fit.json", "history.csv"
RUN_FIELDS = ("algorithm", "evaluations", "remaining", "floored", "finished", "reseeded")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save_fit(fit: Fit, path: str | Path, *, replace: bool = False) -> None:
    """Write a fit as a folder.

    The files are written and flushed beside it and renamed into place, so that a crash at any moment leaves
    what was there before: `load` finds it even between the two renames of a replacement.

    Args:
        fit: the fit; its rows are not stored.
        path: the folder, made with its parents.
        replace: whether a saved fit may stand there; the whole folder is replaced.

    Raises:
        FitError: see `check_writable`; or the disk is full, and nothing at `path` has changed.

    """
    check_writable(path, replace=replace)
    contents = _contents(fit)
    home = resolved(path)
    aside = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        for name, content in contents.items():
            write(aside / name, content)
        flush(aside)
        put_in_place(aside, home)
    except OSError as error:
        raise FitError(
            f"{path}: cannot be written: {error.strerror or error}; nothing has changed"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_writable(path: str | Path, *, replace: bool = False) -> None:
    """Find out before fitting whether a fit can be saved there.

    Args:
        path: the folder to be.
        replace: whether a saved fit that stands there may be replaced.

    Raises:
        FitError: something stands there and `replace` is not given; what stands there is no saved fit, which
            is never replaced; or the place cannot be written.

    Example:
        >>> check_writable(".")
        Traceback (most recent call last):
        ...
        ppl_gen.errors.FitError: .: exists already; replace=True (--replace) writes over a saved fit

    """
    try:
        home = resolved(path)
        recover(home)
        if home.exists():
            if not replace:
                raise FitError(f"{path}: exists already; replace=True (--replace) writes over a saved fit")
            empty = home.is_dir() and not any(home.iterdir())
            if not empty and not (home / RECORD).is_file():
                raise FitError(f"{path}: is not a saved fit (it has no {RECORD}), so it is not replaced")
        there = next(parent for parent in home.parents if parent.exists())
        probe = there / f".{home.name}.{secrets.token_hex(4)}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise FitError(f"{path}: cannot be written: {error.strerror or error}") from error


def load(path: str | Path, *, trust: bool = False, nets: Mapping[str, object] | None = None) -> Fit:
    """Read a saved fit; it predicts what the fit that was saved predicts, to the bit.

    Args:
        path: the folder.
        trust: whether to import what a `Net` of its declaration names; the weights are in the folder, the code that
            takes them is not.
        nets: what to take for a `Net` in place of what it names: its label in the folder's spec.yaml → a module, or
            the function that makes one. These need no trust.

    Returns:
        The Fit, without the rows it was fitted on.

    Raises:
        FitError: naming the file that is missing, truncated or altered, or the code that is not trusted.

    Example:
        >>> load("no/such/fit")
        Traceback (most recent call last):
        ...
        ppl_gen.errors.FitError: no/such/fit: no saved fit here: the folder does not exist

    """
    home = resolved(path)
    recover(home)
    if not home.is_dir():
        what = "it is not a folder" if home.exists() else "the folder does not exist"
        raise FitError(f"{path}: no saved fit here: {what}")
    if not (home / RECORD).exists() and any(home.glob("checkpoint-*")):
        raise FitError(
            f"{path}: holds the checkpoints of a run, and no saved fit; resume (ppl-gen resume) ends it"
        )
    record = _read_record(home / RECORD)
    for name in (SPEC, PARAMETERS):
        if digest(read(home / name)) != record["sha256"].get(name):
            raise FitError(f"{home / name}: is not the file that was saved: its SHA-256 differs")
    try:
        return _assemble(home, record, trust, nets)
    except FitError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FitError(f"{home}: cannot be read by this version: {error!r}") from error


def _contents(fit: Fit) -> dict[str, bytes]:
    state = {
        path: value.detach().cpu().contiguous().clone() for path, value in fit.program.state_dict().items()
    }
    files = {SPEC: spec_text(fit.spec).encode(), PARAMETERS: tensors_as_bytes(state)}
    record = _record(fit) | {"sha256": {name: digest(content) for name, content in files.items()}}
    record["sha256"][RECORD] = digest(_canonical(record))
    written = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    told = history_csv(fit.run.history, fit.run.held_out)
    return files | {RECORD: written.encode(), HISTORY: told.encode()}


def spec_text(spec: Spec) -> str:
    """The declaration as YAML that reads as the same one.

    Raises:
        FitError: it does not.

    """
    text, nets = write_spec(spec), in_memory(spec)
    try:
        again = read_spec(text, trust=True, nets=nets)  # trusted: it is here, and nothing of it is run
        same = again == spec or (bool(nets) and write_spec(again) == text)
    except SpecError as error:
        raise FitError(
            f"the declaration's own YAML text cannot be read back, so nothing is saved: {error}"
        ) from error
    if not same:
        raise FitError("the declaration's own YAML text reads as another one, so nothing is saved")
    return text


def in_memory(spec: Spec) -> dict[str, object]:
    """The modules of a declaration that no text can name, by their labels."""
    entries = [*spec.model.values(), *(spec.guide or {}).values()]
    parts = [part for entry in entries for part, _ in parts_of(entry)]
    return {part.label: part.module for part in parts if isinstance(part, Net) and part.label != part.module}


def _record(fit: Fit) -> dict[str, Any]:
    run = fit.run
    return {
        "format": FORMAT,
        "schema": fit.program.schema.to_dict(),
        "own_families": own_families(fit.spec),
        "dtype": str(fit.program.dtype).removeprefix("torch."),
        "algorithm": fit.algorithm,
        "seed": fit.seed,
        "n_units": fit.n_units,
        "log_likelihood": _number(fit.log_likelihood),
        "elbo": _number(fit.elbo),
        "status": run.status.name,
        "history": [_number(value) for value in run.history],
        "held_out": [_number(value) for value in run.held_out],
        "modes": [
            {
                "log_likelihood": _number(m.log_likelihood),
                "hits": m.hits,
                "shares": list(map(_number, m.shares)),
            }
            for m in run.modes
        ],
        "restarts": run.restarts,
        "collapsed": run.collapsed,
        "lowering": run.lowering,
        "notes": list(run.notes),
        "run": {name: _plain(getattr(run, name)) for name in RUN_FIELDS},
        "certificate": fit.certificate.to_dict(),
        "versions": fit.versions,
    }


def _assemble(home: Path, record: Mapping[str, Any], trust: bool, nets: Mapping[str, object] | None) -> Fit:
    check_registered(record.get("own_families", {}))  # files of before them do without
    try:
        program = Program(read_spec(home / SPEC, trust=trust, nets=nets), Schema.from_dict(record["schema"]))
    except SpecError as error:
        if error.word == "Net":
            raise FitError(str(error)) from error
        raise
    program = program.to(dtype=DTYPES[record["dtype"]])
    try:
        floors = program.generative.floors.state_dict(prefix="generative.floors.")  # older files have none
        program.load_state_dict(floors | read_tensors(read(home / PARAMETERS)))
    except (SafetensorError, RuntimeError) as error:
        raise FitError(f"{home / PARAMETERS}: does not hold this model's parameters: {error}") from error
    modes = tuple(
        Mode(float(m["log_likelihood"]), int(m["hits"]), tuple(map(float, m["shares"])))
        for m in record["modes"]
    )
    run = Run(
        state=program.state_dict(),
        history=tuple(map(float, record["history"])),
        held_out=tuple(map(float, record.get("held_out", ()))),
        status=Status[record["status"]],
        modes=modes,
        restarts=record["restarts"],
        collapsed=record["collapsed"],
        lowering=record["lowering"],
        notes=tuple(record["notes"]),
        **{name: _restored(value) for name, value in record.get("run", {}).items() if name in RUN_FIELDS},
    )
    return Fit(
        program=program,
        run=run,
        algorithm=record["algorithm"],
        seed=record["seed"],
        n_units=record["n_units"],
        log_likelihood=float(record["log_likelihood"]),
        elbo=float(record["elbo"]),
        certificate=Certificate.from_dict(record["certificate"]),
        versions=record["versions"],
    )


def _read_record(path: Path) -> dict[str, Any]:
    content = read(path)
    try:
        record = json.loads(content)
        format_, own = record["format"], record["sha256"].pop(RECORD)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FitError(f"{path}: is damaged: it is not the record of a fit ({error!r})") from error
    if format_ != FORMAT:
        raise FitError(f"{path}: has format {format_!r}, and this version reads {FORMAT}; upgrade ppl_gen")
    if digest(_canonical(record)) != own:
        raise FitError(f"{path}: is not the file that was saved: its own SHA-256 differs")
    return dict(record)


def _canonical(record: Mapping[str, Any]) -> bytes:
    """The record as it is hashed: white space and the order of keys do not count."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else _number(value) if isinstance(value, float) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return float(value) if value in ("nan", "inf", "-inf") else value


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity: those are kept as text, which float() reads."""
    return float(value) if math.isfinite(value) else repr(float(value))
