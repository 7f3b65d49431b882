"""Program: a declaration compiled to an ordinary Pyro model and guide over an `nn.Module`'s parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_gen.data.reading import read_table
from ppl_gen.data.schema import Schema
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.guide import derive_guide
from ppl_gen.declare.nodes import Node
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Term
from ppl_gen.errors import FitError
from ppl_gen.program.accounting import count_free, natural_parameters
from ppl_gen.program.beginnings import set_beginnings
from ppl_gen.program.half import Half, parent_of
from ppl_gen.program.labelled import Labelled
from ppl_gen.program.marks import agreement, has_holes, label_site, seen_key, seen_of
from ppl_gen.program.priors import Priors

PLATE = "units"


class Program(nn.Module):
    """The compiled pair. Parameters are this module's own; nothing here touches Pyro's parameter store.

    Args:
        spec: the declaration.
        schema: roles, sizes, columns and levels, as `read_table` settles them.
        seed: of the starting values.

    `model(data, n=None, size=None)` and `guide(…)` take `data`, a mapping from names to tensors of N rows:
    (N, dim) for real, count and 0/1 nodes, (N,) integers for a scalar Categorical. What `data` lacks is drawn.

    Example:
        >>> from ppl_gen import By, Categorical, Normal, Spec
        >>> spec = Spec(model=dict(z=Categorical(2), x=Normal(1, loc=By("z"), scale=1)))
        >>> program = compile_spec(spec, {"x": [[0.0], [1.0], [3.0]]})
        >>> program.model({}, n=4)["x"].shape
        torch.Size([4, 1])

    """

    def __init__(self, spec: Spec, schema: Schema, *, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.schema = spec, schema
        roles = schema.roles
        self.guide_spec: dict[str, Node | Term] = dict(
            spec.guide if spec.guide is not None else derive_guide(spec, roles, schema.holes)
        )
        inputs = {name: parent_of(name, spec.nodes[name], schema) for name in roles.inputs}
        observed = {name: parent_of(name, spec.nodes[name], schema) for name in roles.observed}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.generative = Half(spec.model, inputs, schema)
            known = {*roles.observed} - {*schema.partial}
            needed = {name: entry for name, entry in self.guide_spec.items() if name not in known}
            read = {name: parent for name, parent in observed.items() if name not in needed}
            self.recognition = Half(needed, inputs | read, schema)
            # Something depends on these discrete nodes: where one is missing it is summed out, not skipped.
            self.inner = frozenset(n for n, d in self.generative.draws.items() if d.node.discrete) - {
                *spec.leaves
            }
            parents = {parent for entry in needed.values() for parent in entry.parents()}
            self._guide_reads = [name for name in (*inputs, *read) if name in parents]
            set_beginnings(self.generative, schema)
            set_beginnings(self.recognition, schema)
            self.priors = Priors(self.generative, schema)

    @property
    def discrete(self) -> tuple[str, ...]:
        """The discrete latents, in model order."""
        return tuple(name for name in self.schema.roles.latent if self.spec.nodes[name].discrete)

    @property
    def enumerated(self) -> tuple[str, ...]:
        """The discrete nodes that a fit sums out in the model: latent, or known in part; in model order."""
        lacking = {*self.schema.partial, *self.discrete}
        return tuple(
            name for name in self.generative.draws if name in lacking and name not in self.recognition.draws
        )

    def enumerated_in(self, rows: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The discrete nodes that these rows lack, wholly or in part, and that no guide draws; in model order."""
        return tuple(
            name
            for name, draw in self.generative.draws.items()
            if draw.node.discrete
            and name not in self.recognition.draws
            and (name not in rows or (seen_key(name) in rows and name in self.inner))
        )

    @property
    def continuous(self) -> tuple[str, ...]:
        """The continuous latents, in model order."""
        return tuple(name for name in self.schema.roles.latent if not self.spec.nodes[name].discrete)

    def model(
        self, data: Mapping[str, Tensor] | None = None, n: int | None = None, size: int | None = None
    ) -> dict[str, Tensor]:
        """p(x, z): one plate over units, one `pyro.sample` a node, in the declared order.

        Args:
            data: what is given; a node it lacks is drawn, a discrete one marked for parallel enumeration. Beside
                "x", "x.seen" may mark the cells that are seen with 1 and the others with 0 (see `tensors`).
            n: rows, where `data` does not say.
            size: rows of the whole data when `data` is a minibatch: log-probabilities count size/n times.

        """
        given = dict(data or {})
        inputs = self.schema.roles.inputs
        _all_there("model", inputs, given)
        values = {name: given[name] for name in inputs}
        with self._plate(given, n, size):
            for name, draw in self.generative.draws.items():
                distribution = self.generative.distribution(name, values)
                observed, seen = given.get(name), seen_of(given, name, joined=draw.family.joined)
                labelled = seen is not None and name in self.inner
                if labelled:
                    observed = None
                else:
                    distribution = distribution.where_seen(seen)
                infer = {"enumerate": "parallel"} if draw.node.discrete and observed is None else {}
                values[name] = pyro.sample(name, distribution, obs=observed, infer=infer)
                if labelled:
                    known = agreement(values[name], given[name], given[seen_key(name)], self.dtype)
                    pyro.factor(label_site(name), known)
        return values

    def density(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """Log p of one node's value given its parents', among the values of all: what its site adds.

        Where `values` has marks of the seen cells, the others are integrated out.
        """
        given = dict(values)
        joined = self.generative.draws[name].family.joined
        seen = None if name in self.inner else seen_of(given, name, joined=joined)
        distribution = self.generative.distribution(name, given).where_seen(seen)
        log_prob: Tensor = distribution.log_prob(given[name])
        return log_prob

    def guide(
        self, data: Mapping[str, Tensor] | None = None, n: int | None = None, size: int | None = None
    ) -> dict[str, Tensor]:
        """q(z | x), of the latents that `data` lacks; see `model` for the arguments."""
        given = dict(data or {})
        values = dict(given)
        if any(name not in given for name in self.recognition.draws):
            _all_there("guide", self._guide_reads, given)
        with self._plate(given, n, size):
            for name, draw in self.recognition.draws.items():
                seen = given.get(seen_key(name))
                if name in given and seen is None:
                    continue
                distribution = self.recognition.distribution(name, values)
                if seen is not None:  # known in some rows: those are certain of their label
                    distribution = Labelled(distribution, given[name], seen)
                infer = {"enumerate": "parallel"} if draw.node.discrete else {}
                values[name] = pyro.sample(name, distribution, infer=infer)
        return {name: values[name] for name in self.recognition.draws}

    def forward(self, part: str, *args: Any, **kwargs: Any) -> Any:
        """`model`, `guide`, `density` or `log_prior` by name, for `torch.func.functional_call`."""
        parts: dict[str, Callable[..., Any]] = {
            "model": self.model,
            "guide": self.guide,
            "density": self.density,
            "log_prior": self.log_prior,
        }
        return parts[part](*args, **kwargs)

    def log_prior(self) -> Tensor:
        """Σ log p of all learned numbers that have a prior, at their natural values: a scalar, in nats.

        Example:
            >>> from ppl_gen import Free, Normal, Spec
            >>> spec = Spec(model=dict(x=Normal(1, loc=Free(prior=Normal(loc=0, scale=2)), scale=1)))
            >>> compile_spec(spec, {"x": [[0.0], [1.0]]}).log_prior().detach()
            tensor(-1.6433, dtype=torch.float64)

        """
        total: Tensor = self.priors()
        return total

    def pyro_pair(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The pair for plain `pyro.infer.SVI`, which optimises what is in Pyro's parameter store.

        Both callables register this module's parameters there on each call, under "ppl_gen". Without that,
        `SVI` gives finite losses and moves nothing.

        Example:
            >>> import pyro
            >>> from pyro.infer import SVI, Trace_ELBO
            >>> program = compile_spec("vae_diagonal", {"x": torch.randn(20, 3).numpy()})
            >>> model, guide = program.pyro_pair()
            >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
            >>> loss = svi.step({"x": torch.randn(20, 3)})
            >>> pyro.clear_param_store()

        """

        def registered(half: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                pyro.module("ppl_gen", self)
                return half(*args, **kwargs)

            return call

        return registered(self.model), registered(self.guide)

    def natural(self) -> dict[str, dict[str, Any]]:
        """The model's parameters on their natural scale, as NumPy arrays: {"x": {"loc": (K, D), …}, …}."""
        return natural_parameters(self.generative)

    @property
    def n_parameters(self) -> int:
        """How many identified numbers the model has (rule 12); a guide's are not counted."""
        return count_free(self.generative, self.schema)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self._any_number().dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self._any_number().device

    def tensors(
        self,
        arrays: Mapping[str, NDArray[Any]],
        holes: Collection[str] | None = None,
        device: torch.device | None = None,
    ) -> dict[str, Tensor]:
        """A table's arrays as tensors of this program's dtype; categories as integers.

        Where cells are missing (NaN; −1 for a category) the others are marked: "x.seen" is 1 for a seen cell,
        of x's shape, and x is 0 elsewhere. A category that nothing depends on keeps its −1, which matches no
        level.

        Args:
            arrays: name → rows.
            holes: the names that are to be marked; default those that have a missing cell.
            device: default the program's.

        """
        found: dict[str, Tensor] = {}
        device = device or self.device
        for name, array in arrays.items():
            marked = name in holes if holes is not None else has_holes(array)
            integer = array.dtype.kind in "iu"
            if marked and not (integer and name not in self.inner):
                seen = array >= 0 if integer else ~np.isnan(array)
                array = np.where(seen, array, 0)
                found[seen_key(name)] = torch.from_numpy(seen).to(device, self.dtype)
            found[name] = self._tensor(array).to(device)
        return found

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # torch warns of arrays it must not write; nothing here writes.
        tensor = torch.from_numpy(array if array.flags.writeable else np.array(array))
        return tensor if tensor.dtype == torch.int64 else tensor.to(self.dtype)

    def _any_number(self) -> Tensor:
        return next(iter(self.state_dict().values()), torch.zeros((), dtype=torch.float64))

    def _plate(self, given: Mapping[str, Tensor], n: int | None, size: int | None) -> Any:
        rows = {name: value.shape[0] for name, value in given.items() if "." not in name}
        if n is None and not rows:
            raise FitError("how many rows to draw? give n=, or data")
        if len({*rows.values(), *([] if n is None else [n])}) > 1:
            raise FitError(f"the data have different numbers of rows: {rows}" + (f"; n={n}" if n else ""))
        count = n if n is not None else next(iter(rows.values()))
        if size is None or size == count:
            return pyro.plate(PLATE, count, dim=-1)
        return pyro.plate(PLATE, size, subsample=torch.arange(count, device=self.device), dim=-1)


def _all_there(half: str, names: Iterable[str], given: Mapping[str, Tensor]) -> None:
    lacking = [name for name in names if name not in given]
    if lacking:
        raise FitError(
            f"the {half} needs {', '.join(lacking)}; the data have {', '.join(given) or 'nothing'}"
        )


def compile_spec(
    spec: Spec | str | Path,
    data: Any,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Program:
    """Compile a declaration for some data.

    Args:
        spec: a Spec, a path, or the name of a shipped model.
        data: anything `fit` takes, or a Schema; settles roles, sizes and levels, and is not kept.
        seed: of the starting values.
        dtype: of the parameters; default float64 where no term is a network, else float32.
        device: default the CPU.

    Raises:
        SpecError: the declaration is wrong, or cannot be compiled.
        DataError: the data do not fit it.

    Example:
        >>> compile_spec("gaussian_mixture", {"x": [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]}).n_parameters
        17

    """
    declared = spec if isinstance(spec, Spec) else read_spec(spec)
    schema = data if isinstance(data, Schema) else read_table(data, declared).schema
    program = Program(declared, schema, seed=seed)
    return program.to(dtype=dtype or default_dtype(program), device=device)


def default_dtype(program: Program) -> torch.dtype:
    """float64, but float32 where a continuous latent means networks and SVI."""
    return torch.float32 if program.continuous else torch.float64
