"""The spaces parameters live in, and the coordinates the program keeps them in.

A parameter has three forms. Its *predictor* u is unconstrained: what a network puts out, what is stored and
optimised. Its *working* value is what a distribution wants (a covariance's Cholesky factor, the logits of a
probability). Its *natural* value is what a person writes and reads. The maps are those of torch's
`transform_to`: exp, sigmoid, softmax, and L with exp on its diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_gen.errors import SpecError

SUM_TOLERANCE = 1e-6  # written probabilities sum to 1 within this


@dataclass(frozen=True)
class Constraint:
    """The maps of one kind of parameter: predictor ⇄ working ⇄ natural."""

    name: str
    working: Callable[[Tensor], Tensor]  # from the predictor
    predictor: Callable[[Tensor], Tensor]  # from the working value
    natural: Callable[[Tensor], Tensor]  # from the working value
    from_natural: Callable[[Tensor], Tensor]  # to the working value

    def holds(self, natural: Tensor) -> bool:
        """Whether natural values lie in the space; a matrix is judged by its factorisation instead."""
        if not bool(torch.isfinite(natural).all()):
            return False
        if self.name == "positive":
            return bool((natural > 0).all())
        if self.name == "lower_cholesky":
            return bool((natural.diagonal(dim1=-2, dim2=-1) > 0).all()) if natural.ndim > 1 else False
        if self.name not in ("unit_interval", "simplex"):
            return True
        inside = bool(((natural >= 0) & (natural <= 1)).all())
        sums = natural.sum(-1) if self.name == "simplex" and natural.ndim else torch.ones(())
        return inside and bool(((sums - 1).abs() <= SUM_TOLERANCE).all())


def tril_indices(packed: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Rows and columns of a packed lower triangle, and the matrix' size."""
    size = int(((8 * packed + 1) ** 0.5 - 1) / 2)
    rows, columns = torch.tril_indices(size, size, device=device)
    return rows, columns, size


def unpack_tril(u: Tensor) -> Tensor:
    """(…, D(D+1)/2) → (…, D, D), exp on the diagonal."""
    rows, columns, size = tril_indices(u.shape[-1], u.device)
    flat = torch.zeros((*u.shape[:-1], size * size), dtype=u.dtype, device=u.device)
    full = flat.index_copy(-1, rows * size + columns, u).unflatten(-1, (size, size))
    return full.tril(-1) + torch.diag_embed(full.diagonal(dim1=-2, dim2=-1).exp())


def pack_tril(L: Tensor) -> Tensor:
    """(…, D, D) → (…, D(D+1)/2), log of the diagonal."""
    size = L.shape[-1]
    rows, columns = torch.tril_indices(size, size, device=L.device)
    logged = L.tril(-1) + torch.diag_embed(L.diagonal(dim1=-2, dim2=-1).log())
    return logged.flatten(-2).index_select(-1, rows * size + columns)


def logit(p: Tensor) -> Tensor:
    """Log-odds, finite at 0 and 1."""
    finfo = torch.finfo(p.dtype)
    inside = p.clamp(min=finfo.tiny, max=1 - finfo.eps)
    return inside.log() - torch.log1p(-inside)


def floored_log(p: Tensor) -> Tensor:
    """Log p, kept at the smallest normal number: never −∞."""
    return p.clamp(min=max(torch.finfo(p.dtype).tiny, 1e-300)).log()


def _identity(u: Tensor) -> Tensor:
    return u


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


_CONSTRAINTS = {
    c.name: c
    for c in (
        Constraint("real", _identity, _identity, _identity, _identity),
        Constraint("positive", torch.exp, floored_log, _identity, _identity),
        Constraint("count", _identity, _identity, _identity, _identity),  # given, never learned
        Constraint("unit_interval", _identity, _identity, torch.sigmoid, logit),
        Constraint("simplex", _identity, _identity, lambda u: F.softmax(u, -1), floored_log),
        Constraint("lower_cholesky", unpack_tril, pack_tril, _identity, _identity),
        Constraint("covariance", unpack_tril, pack_tril, lambda L: L @ L.mT, torch.linalg.cholesky),
    )
}
_MAPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "identity": (_identity, _identity),
    "exp": (torch.exp, floored_log),
    "softplus": (F.softplus, _inverse_softplus),
    "sigmoid": (torch.sigmoid, logit),
}
# What may stand in for a constraint's own transform (the first): the values must lie inside it.
_WITHIN = {
    "real": ("identity", "exp", "softplus", "sigmoid"),
    "positive": ("exp", "softplus", "sigmoid"),
    "count": ("identity",),
    "unit_interval": ("sigmoid",),
    "simplex": ("softmax",),
    "lower_cholesky": ("exp",),
    "covariance": ("exp",),
}


def constraint(name: str, transform: str | None = None) -> Constraint:
    """The constraint of that name, with its own transform or one put in its place.

    >>> constraint("positive").working(torch.zeros(2))
    tensor([1., 1.])

    Raises SpecError where the transform does not lead into the constraint's space.
    """
    if transform is None or transform == _WITHIN[name][0]:
        return _CONSTRAINTS[name]
    if transform not in _WITHIN[name]:
        fitting = ", ".join(_WITHIN[name])
        raise SpecError(
            f"transform={transform!r} gives no {name} value; possible: {fitting}", word="transform"
        )
    onto, back = _MAPS[transform]
    return Constraint(name, onto, back, _identity, _identity)
