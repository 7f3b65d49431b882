"""A user's own Pyro model and guide as a pure function of their parameters and the rows.

Pyro functions read parameters from wherever those live: Pyro's store, modules they close over. Here every torch
function that is called inside them takes other tensors in the place of those: the step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.overrides import TorchFunctionMode

from ppl_gen.errors import FitError
from ppl_gen.infer.centring import Centring
from ppl_gen.infer.elbo import Half
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.pair import Which

UserHalf = Callable[[dict[str, Tensor]], Any]
# What is asked of a tensor's identity, not of its numbers: `pyro.module` registers what requires gradients.
_OF_THE_TENSOR = {
    getattr(Tensor, name).__get__
    for name in ("requires_grad", "is_leaf", "grad", "grad_fn", "_version", "_cdata")
}


class Substituted(TorchFunctionMode):
    """Every torch function takes other tensors in the place of known ones.

    Args:
        instead: by the identity of a tensor, which has to live on, what is taken in its place.

    Example:
        >>> weight = torch.ones(2)
        >>> with Substituted({id(weight): torch.zeros(2)}):
        ...     weight + 1
        tensor([1., 1.])

    """

    def __init__(self, instead: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One function."""
        del types
        if func in _OF_THE_TENSOR:
            return func(*args, **(kwargs or {}))
        return func(*self._replaced(args), **self._replaced(kwargs or {}))

    def _replaced(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self.instead.get(id(tree), tree)
        if type(tree) in (tuple, list):
            return type(tree)([self._replaced(part) for part in tree])
        if type(tree) is dict:
            return {key: self._replaced(part) for key, part in tree.items()}
        return tree


@dataclass(frozen=True)
class Leaves:
    """The tensors that a model and a guide compute with and do not make.

    Args:
        trained: unconstrained, by the name of Pyro's store or of the module they are in.
        fixed: what else they close over: buffers, frozen weights, constants.
        store: the same tensors as `trained`, by every name that Pyro's store has for them.
        constraints: by the store's names.

    """

    trained: dict[str, Tensor]
    fixed: dict[str, Tensor]
    store: dict[str, Tensor]
    constraints: dict[str, Any]


class PyroPair:
    """A model and a guide written in Pyro, as a `Pair`.

    Args:
        model: rows → anything, the joint law of a minibatch in one plate.
        guide: rows → anything, the latents' law.
        leaves: what they compute with; see `find_leaves`.
        drawn: whether the guide draws anything that is not enumerated.
        side_by_side: whether both take draws of a row on an axis before the rows'.
        width: numbers that the largest intermediate result takes for a row.
        enumerated: the sites that are.

    """

    def __init__(
        self,
        model: UserHalf,
        guide: UserHalf,
        leaves: Leaves,
        *,
        drawn: bool = True,
        side_by_side: bool = True,
        width: int = 1,
        enumerated: tuple[str, ...] = (),
    ) -> None:
        self.model, self.guide, self.leaves = model, guide, leaves
        self.drawn, self.side_by_side, self.width, self.enumerated = drawn, side_by_side, width, enumerated
        self.centring = Centring(nn.Module())  # nobody knows what multiplies what here

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(iter(self.leaves.trained.values()), torch.zeros(())).device

    def parameters(self) -> State:
        """Copies of the unconstrained parameters."""
        return {name: leaf.detach().clone() for name, leaf in self.leaves.trained.items()}

    def buffers(self) -> State:
        """Copies of what is closed over and not trained."""
        return {name: leaf.detach().clone() for name, leaf in self.leaves.fixed.items()}

    @contextmanager
    def at(self, state: State) -> Iterator[tuple[Half, Half]]:
        """Model and guide at these parameters; distributions may hold a leaf, so densities are asked inside too."""
        instead = {id(leaf): state[name] for name, leaf in (self.leaves.trained | self.leaves.fixed).items()}
        with self.stored(), Substituted(instead):
            yield plainly(self.model), plainly(self.guide)
            new = sorted(set(pyro.get_param_store().keys()) - set(self.leaves.store))
            if new:
                raise FitError(
                    f"the parameter {new[0]!r} is declared in some calls only, and was not on the first rows: "
                    "declare every parameter at every call"
                )

    @contextmanager
    def stored(self) -> Iterator[None]:
        """Pyro's store holding the leaves and nothing else; put back afterwards."""
        state = {"params": dict(self.leaves.store), "constraints": dict(self.leaves.constraints)}
        marked = [leaf for leaf in self.leaves.store.values() if "unconstrained" in leaf.__dict__]
        try:
            with pyro.get_param_store().scope(state):
                yield
        finally:
            for leaf in self.leaves.store.values():
                if all(leaf is not own for own in marked):
                    leaf.__dict__.pop("unconstrained", None)  # Pyro's weak reference, which cannot be pickled

    def log_prior(self, state: State) -> None:
        """None: a point estimate has no prior in Pyro; a parameter that has one is a latent there."""

    def least(self) -> State:
        """None: what keeps a scale from 0 is for the model to say."""
        return {}

    def floored(self, state: State, rows: Mapping[str, Tensor]) -> tuple[str, ...]:
        """None: see `least`."""
        return ()

    def concluded(self, state: State, rows: Any) -> State:
        """As it is: whose classes may change places is not known."""
        return state

    def around(
        self, which: Which, name: str, law: Any, state: State, values: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """The distribution's own parameters."""
        while hasattr(law, "base_dist"):
            law = law.base_dist
        with self.at(state):
            own = {key: getattr(law, key, None) for key in getattr(law, "arg_constraints", {})}
            return {f"its {key}": value + 0 for key, value in own.items() if isinstance(value, Tensor)}

    def load(self, state: State) -> None:
        """Write the parameters into the tensors that the user's functions read."""
        with torch.no_grad():
            for name, leaf in self.leaves.trained.items():
                leaf.copy_(state[name])

    def constrained(self, state: State) -> State:
        """The parameters as the user's functions see them."""
        with torch.no_grad():
            return {
                name: transform_to(self.leaves.constraints[name])(state[name])
                if name in self.leaves.constraints
                else state[name]
                for name in self.leaves.trained
            }


def plainly(half: UserHalf) -> Half:
    """Without `pyro.deterministic` sites, which have no density."""
    return poutine.block(
        half, hide_fn=lambda message: bool((message.get("infer") or {}).get("_deterministic"))
    )
