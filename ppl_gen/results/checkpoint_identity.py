"""Whose run a checkpoint is of: declaration, algorithm, seed and data, held against what is given on resuming."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ppl_gen.data.sources import Rows
from ppl_gen.data.stream import StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.declare.files import read_spec, write_spec
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI, described
from ppl_gen.infer.checkpoints import Checkpoints
from ppl_gen.program.own import check_registered, own_families
from ppl_gen.program.program import Program
from ppl_gen.results.checkpoint_files import CheckpointFolder
from ppl_gen.results.fingerprints import fingerprint
from ppl_gen.results.storage import in_memory, spec_text

VERSIONS = ("torch", "pyro-ppl")  # others than these may change what a step computes


def open_folder(
    checkpoints: Checkpoints,
    program: Program,
    table: Table,
    algorithm: SVI,
    *,
    seed: int,
    reason: str,
    data: Any,
    weights: Any,
) -> CheckpointFolder:
    """The folder of a new run's checkpoints, made and tried.

    Args:
        checkpoints: where and how often.
        program: the compiled model.
        table: its rows.
        algorithm: the run's.
        seed: the run's.
        reason: why this algorithm.
        data: as `fit` was given them; a path is remembered.
        weights: likewise; a name is remembered.

    Raises:
        FitError: the folder cannot serve; or the declaration cannot be written as YAML.

    """
    path = os.fspath(data) if isinstance(data, str | os.PathLike) else None
    place = checkpoints.data or path
    column = checkpoints.weights or (weights if isinstance(weights, str) else None)
    identity = {
        "spec": spec_text(program.spec),
        "own_families": own_families(program.spec),
        "algorithm": described(algorithm),
        "seed": seed,
        "dtype": str(program.dtype).removeprefix("torch."),
        "device": str(program.device),
        "reason": reason,
        "data": None if place is None else str(Path(place).expanduser().absolute()),
        "weights": column,
        "stream": _stream(data, table),
        "fingerprint": fingerprint(table),
        "versions": {name: version(name) for name in VERSIONS},
        "every_epochs": checkpoints.every_epochs,
        "every_minutes": checkpoints.every_minutes,
    }
    folder = CheckpointFolder(checkpoints, identity)
    folder.prepare()
    return folder


def known_spec(
    identity: Mapping[str, Any],
    given: Spec | str | Path | None,
    *,
    trust: bool = False,
    nets: Mapping[str, object] | None = None,
) -> Spec:
    """The declaration of a run, held against the one that is given now.

    Args:
        identity: of the run.
        given: now; what a Spec has in memory serves as `nets`.
        trust: whether to import the code that a Net names.
        nets: Nets by the place that the declaration names.

    Raises:
        FitError: that is another one; or a family of one's own is not registered.

    """
    check_registered(identity["own_families"])
    nets = {**(in_memory(given) if isinstance(given, Spec) else {}), **(nets or {})}
    spec = read_spec(identity["spec"], trust=trust, nets=nets)
    if given is not None:
        now = given if isinstance(given, Spec) else read_spec(given, trust=trust, nets=nets)
        if now != spec and not (nets and write_spec(now) == identity["spec"]):
            raise FitError(f"the run was begun on another declaration:\n{spec}\nand not\n{now}")
    return spec


def known_algorithm(identity: Mapping[str, Any], given: SVI | None) -> SVI:
    """The algorithm of a run; its functions, which no file holds, come from the one that is given now.

    Raises:
        FitError: the run has functions and none are given; or what is given is another algorithm.

    """
    stored = {key: value for key, value in identity["algorithm"].items() if key != "name"}
    functions = [key for key, value in stored.items() if isinstance(value, str) and value.startswith("<")]
    if given is None and functions:
        raise FitError(
            f"the run's {' and '.join(functions)} is a function, which a checkpoint cannot hold: give the same "
            "again, resume(…, algorithm=SVI(…))"
        )
    if given is None:
        return SVI(**{f.name: stored[f.name] for f in fields(SVI) if f.name in stored})
    if not isinstance(given, SVI):
        raise FitError(f"the run was begun with SVI(…), and algorithm is {given!r}")
    plain = described(given)
    changed = [key for key, value in stored.items() if plain.get(key) != value]
    if changed:
        told = ", ".join(f"{key}={stored[key]!r}, not {plain.get(key)!r}" for key in changed)
        raise FitError(f"the run was begun with another algorithm: {told}")
    return given


def as_begun(identity: Mapping[str, Any], data: Any) -> Any:
    """The rows to go on with: those given, or where those of then lie; streamed if they were.

    Raises:
        FitError: none are given and none are known; or arrays are given to a run that read files.

    """
    stream = identity.get("stream")
    if data is None and stream is not None:
        return Rows(**stream)
    if data is None and identity["data"] is None:
        raise FitError("the run's data were given as arrays, which no file holds: give them again")
    if data is None:
        return identity["data"]
    if stream is None or isinstance(data, Rows):
        return data
    if not isinstance(data, str | os.PathLike):
        raise FitError("the run read its rows from files, in pieces: give their path, or Rows(…) of it")
    return Rows(data, stream["chunk_rows"])


def _stream(data: Any, table: Table) -> dict[str, Any] | None:
    """The `Rows` that a streamed table can be read from again; None for one in memory."""
    if not isinstance(table, StreamedTable):
        return None
    rows = data if isinstance(data, Rows) else Rows(data)
    places: Any
    if isinstance(rows.paths, Mapping):
        places = {node: _absolute(place) for node, place in rows.paths.items()}
    elif isinstance(rows.paths, str | os.PathLike):
        places = _absolute(rows.paths)
    else:
        places = [_absolute(place) for place in rows.paths]
    return {"paths": places, "chunk_rows": rows.chunk_rows}


def _absolute(place: str | os.PathLike[str]) -> str:
    return str(Path(place).expanduser().absolute())
