"""The CSV files that commands write: rows of a fit's answers under header names, whole or not at all."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_gen.errors import FitError

if TYPE_CHECKING:
    from ppl_gen.results.fit import Fit

Columns = dict[str, NDArray[Any]]


def check_target(path: Path | None, *, replace: bool) -> None:
    """Find out before any work whether a file can be written; None is the standard output.

    Raises:
        FitError: a file stands there and `replace` is not given, or the place cannot be written.

    """
    if path is None:
        return
    try:
        if path.is_dir():
            raise FitError(f"{path}: is a folder; name a file")
        if path.exists() and not replace:
            raise FitError(f"{path}: exists already; --replace writes over it")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = _aside(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise FitError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_csv(parts: Iterable[Columns], path: Path | None) -> None:
    """Write columns under their names, one part's rows after the other; a file appears whole or not at all.

    Raises:
        FitError: the disk is full, or the like; what stood at `path` still does.

    """
    texts = (
        pd.DataFrame(part).to_csv(index=False, header=first, lineterminator="\n")
        for part, first in zip(parts, chain([True], repeat(False)), strict=False)
    )
    write_texts(texts, path)


def write_texts(texts: Iterable[str], path: Path | None) -> None:
    """Write texts one after the other, or print them; a file appears whole or not at all.

    Raises:
        FitError: as `write_csv` does.

    """
    if path is None:
        for text in texts:
            sys.stdout.write(text)
        return
    aside = _aside(path)
    try:
        with aside.open("x", encoding="utf-8", newline="") as file:
            for text in texts:
                file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise FitError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def predictions_by_part(fit: Fit, rows: Path, *, draws: int, seed: int) -> Iterator[Columns]:
    """`predictions` of all rows; a chunk at a time where they are files to be streamed."""
    from ppl_gen.results.rows import read_in_parts  # here and not above: `show` and `--help` do without

    for i, table in enumerate(read_in_parts(fit.program, rows)):
        yield predictions(fit, table, draws=draws, seed=seed + i)


def predictions(fit: Fit, rows: Any, *, draws: int, seed: int) -> Columns:
    """For each row: every discrete latent's class and probabilities, continuous ones' means, and log p(x).

    Headers: `z` the most probable class, `P(z=2)` its probabilities, `z[0]` a mean, `log p` the log-density,
    `log p std error` beside it where it is estimated.
    """
    program = fit.program
    columns: Columns = {}
    roles, nodes = program.schema.roles, fit.spec.nodes
    discrete = [name for name in roles.latent if nodes[name].discrete]
    if discrete:
        asked: dict[str, Any] = {"draws": draws, "seed": seed}
        classes, shares = fit.predict(rows, **asked), fit.predict_proba(rows, **asked)
        by_name = classes if isinstance(classes, Mapping) else {discrete[0]: classes}
        shares_of = shares if isinstance(shares, Mapping) else {discrete[0]: shares}
        for name in discrete:
            columns |= _spread(name, _headers(fit, name), by_name[name])
            columns |= dict(zip(_class_headers(fit, name), shares_of[name].T, strict=True))
    if program.continuous:
        headers = [header for name in program.continuous for header in _headers(fit, name)]
        columns |= dict(zip(headers, fit.transform(rows, draws=draws, seed=seed).T, strict=True))
    values, errors = fit.score_samples(rows, draws=draws, seed=seed, return_std_error=True)
    columns["log p"] = values
    return columns | ({"log p std error": errors} if program.continuous else {})


def drawn_rows(fit: Fit, n: int, *, seed: int, given: Path | None, latents: bool) -> Columns:
    """Draw n rows, under the training data's column names, behind their Inputs; latents where asked for."""
    roles = fit.program.schema.roles
    drawn = fit.sample(n, seed=seed, given=given)
    columns = {} if given is None else _inputs(fit, given)
    for name in (*(roles.latent if latents else ()), *roles.observed):
        columns |= _spread(name, _headers(fit, name), drawn[name])
    return columns


def _inputs(fit: Fit, given: Path) -> Columns:
    from ppl_gen.data.reading import read_table  # here and not above: `show` and `--help` do without

    schema = fit.program.schema
    columns: Columns = {}
    table = read_table(given, fit.spec, schema=schema, need="inputs")
    for name in schema.roles.inputs:
        own = table.arrays[name]
        columns |= _spread(name, _headers(fit, name), schema.decode(name, own) if name in schema.k else own)
    return columns


def _headers(fit: Fit, name: str) -> tuple[str, ...]:
    """The data's own column names; a latent whose name is one of them says that it is the latent."""
    schema = fit.program.schema
    headers = schema.column_names(name)
    if name not in schema.roles.latent:
        return headers
    taken = {column for own in schema.columns.values() for column in own}
    return tuple(f"latent {header}" if header in taken else header for header in headers)


def _class_headers(fit: Fit, name: str) -> list[str]:
    """P(z=level) in the order of `predict_proba`'s columns; a vector's cells apart by spaces."""
    schema, draw = fit.program.schema, fit.program.generative.draws[name]
    values = draw.family.support(draw.sizes).numpy().astype(np.int64)
    scalar = values.ndim == 1 or values.shape[1] == 1
    values = values.reshape(-1) if scalar else values
    levels = schema.decode(name, values) if name in schema.k else values
    texts = [str(level) if scalar else " ".join(map(str, level)) for level in levels]
    return [f"P({name}={text})" for text in texts]


def _spread(name: str, headers: tuple[str, ...], values: NDArray[Any]) -> Columns:
    cells = values.reshape(len(values), -1)
    assert cells.shape[1] == len(headers), name
    return dict(zip(headers, cells.T, strict=True))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
