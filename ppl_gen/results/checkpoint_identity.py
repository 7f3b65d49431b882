"""Whose run a checkpoint is of: declaration, algorithm, seed and data, held against what is given on resuming."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.table import Table
from ppl_gen.declare.files import read_spec, write_spec
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError, FitError
from ppl_gen.infer.algorithms import SVI, described
from ppl_gen.infer.checkpoints import Checkpoints
from ppl_gen.program.own import check_registered, own_families
from ppl_gen.program.program import Program
from ppl_gen.results.checkpoint_files import CheckpointFolder
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
        table: its rows, all in memory.
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
        "fingerprint": fingerprint(table),
        "versions": {name: version(name) for name in VERSIONS},
        "every_epochs": checkpoints.every_epochs,
        "every_minutes": checkpoints.every_minutes,
    }
    folder = CheckpointFolder(checkpoints, identity)
    folder.prepare()
    return folder


def fingerprint(table: Table) -> dict[str, Any]:
    """What tells these rows from others: SHA-256 of each node's cells, of the weights, and of names and levels.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> spec = read_spec("gaussian_mixture")
        >>> one, other = (read_table([[1.0], [2.0], [x]], spec) for x in (3.0, 4.0))
        >>> fingerprint(one)["nodes"] == fingerprint(other)["nodes"]
        False

    """
    schema = table.schema.to_dict()
    shape = {key: schema[key] for key in ("roles", "dims", "k", "columns", "levels", "partial", "holes")}
    return {
        "rows": table.n_units,
        "nodes": {name: _cells(array) for name, array in sorted(table.arrays.items())},
        "weights": None if table.weights is None else _cells(table.weights),
        "schema": hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest(),
    }


def check_same_data(known: Mapping[str, Any], table: Table) -> None:
    """Hold rows against the fingerprint of those that a run was begun on.

    Raises:
        DataError: they are others; the message says which.

    """
    now, others = fingerprint(table), "the run was begun on other data: "
    if now["rows"] != known["rows"]:
        raise DataError(f"{others}{known['rows']} rows then, {now['rows']} now")
    names = sorted({*known["nodes"], *now["nodes"]})
    changed = [name for name in names if known["nodes"].get(name) != now["nodes"].get(name)]
    if changed:
        raise DataError(f"{others}the values of {', '.join(map(repr, changed))} have changed")
    if now["weights"] != known["weights"]:
        raise DataError(f"{others}the weights have changed")
    if now["schema"] != known["schema"]:
        raise DataError(f"{others}names or levels of the columns have changed")


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
    plain = described(given)
    changed = [key for key, value in stored.items() if plain.get(key) != value]
    if changed:
        told = ", ".join(f"{key}={stored[key]!r}, not {plain.get(key)!r}" for key in changed)
        raise FitError(f"the run was begun with another algorithm: {told}")
    return given


def _cells(array: NDArray[Any]) -> str:
    found = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
