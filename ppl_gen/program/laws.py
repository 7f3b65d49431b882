"""The densities of priors, and how they move when a parameter is measured in other units.

Pyro's own densities, with normalising constants; the inverse Wishart, which Pyro lacks, and the Dirichlet, some of
whose categories a column may lack, are written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pyro import distributions as pyro_distributions
from torch import Tensor

Arguments = Mapping[str, Tensor]
MATRIX_LAWS = frozenset({"InverseWishart"})


@dataclass(frozen=True, eq=False)
class Law:
    """A prior's family and its arguments, spread over the parameter's table.

    Args:
        family: as in `declare.priors`.
        arguments: by name, (parents…, *axes) each; (parents…) and (parents…, D, D) those of an inverse Wishart.
        squared: whether it is the law of the parameter's square, as an inverse gamma on a scale is.

    Example:
        >>> law = Law("Normal", {"loc": torch.zeros(2), "scale": torch.ones(2)})
        >>> law.log_density(torch.tensor([0.0, 1.0]))
        tensor(-2.3379)

    """

    family: str
    arguments: Arguments
    squared: bool = False

    def log_density(self, natural: Tensor, factor: Tensor | None = None) -> Tensor:
        """Σ log p over the table: a scalar.

        Args:
            natural: the parameter's natural values, (parents…, *axes).
            factor: of a covariance its Cholesky factor, where it is at hand.

        """
        if self.family in MATRIX_LAWS:
            L = torch.linalg.cholesky_ex(natural)[0] if factor is None else factor
            return log_inverse_wishart(L, **self.arguments).sum()
        if self.family == "Dirichlet":
            return log_dirichlet(natural, **self.arguments).sum()
        law = getattr(pyro_distributions, self.family)(**self.arguments, validate_args=False)
        values: Tensor = law.log_prob(natural**2 if self.squared else natural)
        return values.sum()

    def rescaled(self, role: str, shift: Tensor, unit: Tensor) -> tuple[Law, Tensor]:
        """The law of the same parameter for y = (x − shift)/unit, and by how much its Σ log p grows: a constant.

        Args:
            role: "loc", "scale" or "cov": how the parameter moves with the units; any other does not.
            shift: (D,), or (1,) where the parameter is one value for all dimensions.
            unit: the same.

        """
        if role not in _MOVED or self.family not in _MOVED[role]:
            return self, shift.new_zeros(())
        moved = dict(self.arguments)
        if self.family == "InverseWishart":
            moved["scale"] = moved["scale"] / (unit.unsqueeze(-1) * unit)
            D = unit.shape[-1]
            return Law(self.family, moved), (D + 1) * unit.log().sum() * max(1, moved["df"].numel())
        u = unit**2 if self.squared else unit
        for name, move in _MOVED[role][self.family].items():
            moved[name] = move(moved[name], shift, u)
        first = next(iter(moved.values()))
        return Law(self.family, moved, self.squared), u.log().expand(first.shape).sum()


Move = Callable[[Tensor, Tensor, Tensor], Tensor]


def _from_shift(value: Tensor, shift: Tensor, unit: Tensor) -> Tensor:
    return (value - shift) / unit


def _over(value: Tensor, shift: Tensor, unit: Tensor) -> Tensor:  # noqa: ARG001
    return value / unit


def _times(value: Tensor, shift: Tensor, unit: Tensor) -> Tensor:  # noqa: ARG001
    return value * unit


def _less_log(value: Tensor, shift: Tensor, unit: Tensor) -> Tensor:  # noqa: ARG001
    return value - unit.log()


_MOVED: dict[str, dict[str, dict[str, Move]]] = {
    "loc": {
        "Normal": {"loc": _from_shift, "scale": _over},
        "StudentT": {"loc": _from_shift, "scale": _over},
    },
    "scale": {
        "HalfNormal": {"scale": _over},
        "HalfCauchy": {"scale": _over},
        "LogNormal": {"loc": _less_log},
        "Gamma": {"rate": _times},
        "Exponential": {"rate": _times},
        "InverseGamma": {"rate": _over},
    },
    "cov": {"InverseWishart": {"scale": _over}},
}


def log_dirichlet(probs: Tensor, concentration: Tensor, lacking: Tensor) -> Tensor:
    """Log Dirichlet over the last axis: (…, k) → (…).

    A category that a column lacks has concentration 1 and adds nothing; `lacking` (…) counts them.
    """
    total = torch.lgamma(concentration.sum(-1) - lacking) - torch.lgamma(concentration).sum(-1)
    least = max(torch.finfo(probs.dtype).tiny, 1e-300)
    return total + ((concentration - 1) * probs.clamp(min=least).log()).sum(-1)


def log_inverse_wishart(factor: Tensor, df: Tensor, scale: Tensor) -> Tensor:
    """Log IW(L Lᵀ; df, scale): (…, D, D) factors and scales, (…) df → (…).

    −½(df + D + 1) log|Σ| − ½ tr(scale·Σ⁻¹) + ½ df log|scale| − ½ df·D log 2 − log Γ_D(df/2).
    """
    D = factor.shape[-1]
    root = torch.linalg.cholesky_ex(scale)[0]
    white = torch.linalg.solve_triangular(factor, root, upper=False)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_det_scale = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    halves = (df.unsqueeze(-1) - torch.arange(D, dtype=df.dtype, device=df.device)) / 2
    log_gamma = torch.lgamma(halves).sum(-1) + D * (D - 1) / 4 * math.log(math.pi)
    constant = 0.5 * df * log_det_scale - 0.5 * df * D * math.log(2) - log_gamma
    return constant - 0.5 * (df + D + 1) * log_det - 0.5 * (white**2).sum((-2, -1))
