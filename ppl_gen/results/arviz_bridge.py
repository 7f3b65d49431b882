"""A Fit as ArviZ reads it; the one file that knows which ArviZ this is."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.program.program import Program
from ppl_gen.results.draws import given_rows
from ppl_gen.results.queries import Array, log_densities
from ppl_gen.results.rows import read_rows

if TYPE_CHECKING:
    from ppl_gen.results.fit import Fit

SAMPLED = ("chain", "draw")
LATENTS_ONLY = (
    "latents given the data at the fitted parameters; parameters are a point estimate and are not here"
)
FIRST_TREES = 1  # the major version of ArviZ from which groups are a DataTree


def to_arviz(fit: Fit, data: Any, *, draws: int, seed: int) -> Any:
    """The groups of `Fit.to_arviz`, as this ArviZ holds them."""
    az = arviz_module()
    groups = groups_of(fit, _rows_of(fit, data), draws, seed)
    return as_container(az, groups, int(az.__version__.split(".")[0]))


def as_container(az: ModuleType | None, groups: Mapping[str, Any], major: int) -> Any:
    """InferenceData with ArviZ 0.2x, where `az` is needed; xarray's own DataTree from 1 on."""
    if major >= FIRST_TREES:
        return xr.DataTree.from_dict(dict(groups))
    assert az is not None
    return az.InferenceData(**groups)


def groups_of(fit: Fit, table: Table, draws: int, seed: int) -> dict[str, Any]:
    """Each group as an xarray Dataset; a group that would be empty is left out."""
    program, roles = fit.program, fit.program.schema.roles
    latents, predicted = given_rows(program, table, draws=draws, seed=seed)
    observed = {name: table.arrays[name] for name in roles.observed if name in table.arrays}
    inputs = {name: table.arrays[name] for name in roles.inputs}
    groups = {
        "posterior": dataset(
            [_latent(program, name, values) for name, values in latents.items()],
            note=LATENTS_ONLY,
            drawn_from="the guide q(z | x)" if program.continuous else "the exact posterior p(z | x)",
        ),
        "posterior_predictive": dataset(
            [_known(program, name, values, SAMPLED) for name, values in predicted.items()],
            note="new x given the latents of the posterior group, at the fitted parameters",
        ),
        "log_likelihood": _log_likelihood(program, table, draws, seed),
        "sample_stats": _objective(fit),
        "observed_data": dataset([_known(program, name, values) for name, values in observed.items()]),
        "constant_data": dataset([_known(program, name, values) for name, values in inputs.items()]),
    }
    return {name: group for name, group in groups.items() if group.data_vars}


def _rows_of(fit: Fit, data: Any) -> Table:
    if data is not None:
        return read_rows(fit.program, data)
    if fit.data is None:
        raise FitError("this fit holds no rows (it was loaded or streamed): pass them, to_arviz(data=...)")
    return fit.data


def _latent(program: Program, name: str, values: Array) -> Any:
    """(S, N, …) draws of a latent; a category as indicators, whose mean over draws is its probability."""
    dims, coords = [*SAMPLED, "unit"], {}
    if values.ndim == 3:
        dims.append(f"{name}_dim")
        coords[f"{name}_dim"] = np.arange(values.shape[2])
    if name in program.schema.k:
        codes = np.arange(program.schema.k[name])
        values = (values[..., None] == codes).astype(np.int8)
        dims.append(f"{name}_class")
        coords[f"{name}_class"] = _class_labels(program, name)
    return xr.DataArray(values[None], coords, dims, name)


def _class_labels(program: Program, name: str) -> Array:
    """A category's levels; its codes where it has none, as a latent that no data ever showed."""
    levels = program.schema.levels.get(name, (None,))
    codes = np.arange(program.schema.k[name])
    if len(levels) > 1 or levels[0] is None:
        return codes
    return np.array([str(level) for level in program.schema.decode(name, codes)])


def _known(program: Program, name: str, values: Array, lead: tuple[str, ...] = ()) -> Any:
    """An observed node or Input, its columns by name; categories as codes, their levels an attribute.

    A missing cell is NaN; among codes it is -1, which the attribute `missing` then says.
    """
    schema, column = program.schema, f"{name}_column"
    values = values[None] if lead else values
    dims, coords = [*lead, "unit"], {}
    if values.ndim > len(dims):
        dims.append(column)
        coords[column] = np.array(schema.column_names(name))
    attrs: dict[str, Any] = {}
    if name in schema.k:
        if values.size and values.min() < 0:
            attrs["missing"] = -1
        attrs["levels"] = json.dumps([own and list(own) for own in schema.levels[name]], ensure_ascii=False)
    return xr.DataArray(values, coords, dims, name, attrs)


def _log_likelihood(program: Program, table: Table, draws: int, seed: int) -> Any:
    """One chain of one draw of log p(x_d), named after the observed node, or "row" if there are several."""
    values, _ = log_densities(program, table, draws=draws, seed=seed)
    observed = program.schema.roles.observed
    name = observed[0] if len(observed) == 1 else "row"
    how = f"importance-weighted, {draws} draws of the guide" if program.continuous else "exact"
    row = xr.DataArray(values[None, None], dims=[*SAMPLED, "unit"], name=name)
    return dataset([row], note="log p(x) of each row, its latents integrated out", estimate=how)


def _objective(fit: Fit) -> Any:
    values = xr.DataArray(fit.history[None], dims=SAMPLED, name="objective")
    what = "EM: the log-likelihood" if fit.algorithm.get("name") == "EM" else "SVI: the ELBO"
    return dataset([values], note=f"{what} over all rows in nats; a draw is a step or an epoch")


def dataset(variables: list[Any], **attrs: str) -> Any:
    """Variables of one group, every dimension with a coordinate."""
    made = xr.Dataset(
        {array.name: array for array in variables}, attrs={"inference_library": "ppl_gen", **attrs}
    )
    bare = [name for name in made.dims if name not in made.coords]
    return made.assign_coords({name: np.arange(made.sizes[name]) for name in bare})


def arviz_module() -> ModuleType:
    """ArviZ, of whichever major version is installed."""
    # ArviZ 0.2x announces version 1 by a FutureWarning on import, once a day; both versions work here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz as az

    module: ModuleType = az
    return module
