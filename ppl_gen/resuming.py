"""resume: a run that was cut short, from its newest checkpoint to its end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ppl_gen.data.reading import read_table
from ppl_gen.data.stream import StreamedTable
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import FitError
from ppl_gen.fitting import conclude
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.callbacks import Callback
from ppl_gen.infer.checkpoints import Checkpoints
from ppl_gen.infer.noise import in_turn
from ppl_gen.infer.progress import Progress, progress_bar
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import compile_spec
from ppl_gen.results.atomic import resolved
from ppl_gen.results.checkpoint_files import CheckpointFolder, newest
from ppl_gen.results.checkpoint_identity import VERSIONS, as_begun, known_algorithm, known_spec
from ppl_gen.results.claims import claim
from ppl_gen.results.fingerprints import check_same_data
from ppl_gen.results.fit import Fit

log = logging.getLogger("ppl_gen")


@in_turn
def resume(
    path: str | Path,
    data: Any = None,
    *,
    spec: Spec | str | Path | None = None,
    algorithm: SVI | None = None,
    weights: Any = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    trust: bool = False,
    nets: Mapping[str, object] | None = None,
) -> Fit:
    """Go on with an SVI run from the newest of its checkpoints, and keep on writing them.

    On the same machine, with the same versions, the Fit is that of a run that was never cut short, to the bit:
    the same parameters and history. A run that had ended is only summed up again.

    Args:
        path: the folder that `Checkpoints` named.
        data: the same rows as then; None: read again from the path that `fit` was given.
        spec: held against the declaration of then, where it is given.
        algorithm: the same as then; it is needed where its optimizer or schedule is a function.
        weights: the same as then; a column's name is remembered.
        callbacks: as for `fit`; they are told of the epochs since the checkpoint.
        progress: as for `fit`.
        trust: whether to import the code that a Net of the declaration names.
        nets: Nets by the place that the declaration names; these need no trust.

    Returns:
        The Fit. Its notes say where it went on.

    Raises:
        FitError: no checkpoint is whole, with what is wrong with each; another spec or algorithm; another dtype.
        DataError: the rows are not those of then, with what differs.

    A newer checkpoint that is damaged is passed over with a warning.

    Example:
        >>> import tempfile
        >>> from ppl_gen import SVI, Checkpoints, fit, vae
        >>> folder, rows = tempfile.mkdtemp(), [[0.0, 1.0], [2.0, 0.5], [1.0, 1.0]]
        >>> whole = fit(vae(1, (4,)), rows, SVI(epochs=3), checkpoint=Checkpoints(folder, every_epochs=1))
        >>> resume(folder, rows).elbo == whole.elbo
        True

    """
    if not isinstance(path, str | Path) or not str(path):
        raise FitError(f"resume: path must name the folder of the checkpoints, not {path!r}")
    claimed = claim(resolved(path))
    found = newest(path)
    for problem in found.refused:
        _warn(f"a damaged checkpoint is passed over: {problem}")
    identity = found.identity
    declared = known_spec(identity, spec, trust=trust, nets=nets)
    algorithm = known_algorithm(identity, algorithm)
    given = as_begun(identity, data)
    table = read_table(given, declared, weights=identity["weights"] if weights is None else weights)
    if isinstance(table, StreamedTable) and identity.get("stream") is None:
        table = table.loaded()
    check_same_data(identity["fingerprint"], table)
    for name in VERSIONS:
        if version(name) != identity["versions"][name]:
            _warn(
                f"{name} was {identity['versions'][name]}, and is {version(name)}: the bits may differ from here on"
            )
    program = compile_spec(
        declared,
        table.schema,
        seed=identity["seed"],
        dtype=getattr(torch, identity["dtype"]),
        device=_device(identity["device"]),
    )
    done = len(found.snapshot["history"])
    note = f"resumed from {found.path.name}, after {done} of {algorithm.epochs} epochs"
    log.info(note)
    snapshot = found.snapshot | {"notes": [*found.snapshot["notes"], note]}
    every = {key: identity[key] for key in ("every_epochs", "every_minutes")}
    folder = CheckpointFolder(Checkpoints(path, **every), identity, [found.path], claimed)
    with progress_bar("ELBO") if progress is None else nullcontext(progress) as report:
        run = run_svi(
            program,
            table,
            algorithm,
            seed=identity["seed"],
            progress=report,
            callbacks=callbacks,
            keeper=folder,
            resumed=snapshot,
        )
    run = replace(run, notes=(identity["reason"], *run.notes))
    return conclude(program, table, run, algorithm, identity["seed"])


def _device(name: str) -> torch.device:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise FitError(
            f"the run was begun on {name!r}, which cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return torch.device(name)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
