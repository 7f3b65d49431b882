"""The least scale that an observed column may be given: without one, densities have no upper bound.

A location on a row and a scale that goes to 0 send that row's density to infinity (Kiefer & Wolfowitz 1956,
https://doi.org/10.1214/aoms/1177728066; of deep models Mattei & Frellsen 2018, https://arxiv.org/abs/1802.04826).
Tables of scales are held at or above their floor by whoever moves them; a function's values are, wherever they
are used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ppl_gen.data.schema import Schema
from ppl_gen.declare.nodes import Node
from ppl_gen.program.families import Family
from ppl_gen.program.layers import Constant, Table

MATRICES = ("covariance", "lower_cholesky")


def least_scales(node: Node, family: Family, name: str, schema: Schema) -> dict[str, Tensor]:
    """By parameter, the least standard deviation of each column of an observed real node, (D,); of others nothing.

    It is a share of the column's own spread: `Family.variance_floor` of its variance. Of a matrix it is that of a
    column given those before it, which is the diagonal of the Cholesky factor.
    """
    if node.support != "real" or name not in schema.roles.observed or name not in schema.spread:
        return {}
    least = math.sqrt(family.variance_floor) * torch.tensor(schema.spread[name], dtype=torch.float64)
    return {key: least for key in node.terms() if key == "scale" or node.constraints[key] in MATRICES}


def is_table(layer: nn.Module) -> bool:
    """Whether a parameter is a table of numbers, each on its own: what can be held at a floor one by one."""
    if isinstance(layer, Constant):
        return True
    return isinstance(layer, Table) and not layer.ordered and not layer.contrast


def for_width(least: Tensor, width: int) -> Tensor:
    """The floor of a scale that serves so many columns: their own, or that of their root mean square."""
    if width == len(least):
        return least
    largest = least.max()  # squares of spreads may be beyond floating point
    return largest * ((least / largest) ** 2).mean(-1, keepdim=True).sqrt()


def raised(working: Tensor, least: Tensor, constraint: str) -> Tensor:
    """A scale (…, D), or a Cholesky factor (…, D, D) by its diagonal, not below its floor.

    >>> raised(torch.tensor([[1e-9, 0.5]]), torch.tensor([1e-4, 1e-4]), "positive")
    tensor([[1.0000e-04, 5.0000e-01]])
    """
    if constraint not in MATRICES:
        return torch.maximum(working, for_width(least, working.shape[-1]).to(working))
    diagonal = working.diagonal(dim1=-2, dim2=-1)
    return working + torch.diag_embed(torch.maximum(diagonal, least.to(working)) - diagonal)
