"""A normal whose location is `Linear`: weighted least squares as its M-step, each class or all together.

With ũ = (u, 1) the sufficient statistics are Σ w ũũᵀ, Σ w x ũ and Σ w x². The normal equations give weight and
bias, what is left over gives the scale. One class and unit weights are ordinary least squares with the
maximum-likelihood variance (divided by N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.infer.enumeration import Rows, State
from ppl_gen.program.families import Site
from ppl_gen.program.families.base import at_least_tiny
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import Constant, LinearLayer
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.program import Program

CYCLES = 3  # conditional maximisations a step, where location and scale do not separate
RANK = 1e-11  # of the largest eigenvalue of ũũᵀ at unit diagonal: below, columns say the same and share the weight


def is_regression(program: Program, draw: Draw) -> bool:
    """Whether a node is a normal with a Linear location of given columns and a table, or number, for its scale."""
    if draw.node.family != "Normal":
        return False
    layers = {key: program.generative.layers[slot.layer] for key, slot in draw.slots.items()}
    loc, scale = layers["loc"], layers["scale"]
    if not isinstance(loc, LinearLayer) or loc.own != (draw.sizes.width,):
        return False
    if not isinstance(scale, TableLayer) and not (isinstance(scale, Constant) and scale.n_free == 0):
        return False
    given = {*program.schema.roles.inputs, *program.schema.roles.observed} - {*program.schema.partial}
    slots = draw.slots.values()
    plain = all(getattr(slot.term, "transform", None) in (None, "identity", "exp") for slot in slots)
    free = all(getattr(slot.term, "prior", None) is None for slot in slots)
    ordered = isinstance(scale, TableLayer) and scale.ordered
    return given.issuperset(loc.inputs.names) and plain and free and not ordered


def statistics(
    program: Program, draw: Draw, state: State, weights: Tensor, rows: Rows, seen: Tensor | None
) -> Tensor:
    """Σ w (ũũᵀ lower triangle, x ũ, x²) of the seen cells: (joint axes…, N) weights → (joint axes…, P)."""
    layer = _location(program, draw)
    x = rows[draw.name]
    given = torch.cat([part.reshape(len(x), -1) for part in layer.inputs(rows, x.dtype)], -1)
    if not layer.free_bias:
        x = x - state[f"generative.layers.{draw.slots['loc'].layer}.bias"]
    design = torch.cat([given, torch.ones_like(given[:, :1])], -1).T  # (Q, N)
    first, second = torch.tril_indices(len(design), len(design), device=x.device)
    products = design.index_select(0, first) * design.index_select(0, second)  # (T, N)
    columns = x.T if seen is None else (x * seen).T
    if seen is not None:
        products = (products * seen.T.unsqueeze(1)).flatten(0, 1)  # (D·T, N)
    crossed = (columns.unsqueeze(1) * design).flatten(0, 1)  # (D·Q, N)
    features = torch.cat([products, crossed, columns * columns])
    flat = weights.reshape(-1, weights.shape[-1]) @ features.T
    return flat.reshape((*weights.shape[:-1], features.shape[0]))


def maximise(
    program: Program, draw: Draw, state: State, site: Site, found: Tensor, bounds: tuple[Tensor, Tensor]
) -> tuple[State, Tensor]:
    """Weights, biases and scales, by path; and whether no scale has collapsed below its floor."""
    layer, D = _location(program, draw), draw.sizes.width
    path, scale_slot = f"generative.layers.{draw.slots['loc'].layer}", draw.slots["scale"]
    gram, crossed, squares = _unpacked(found, layer.inputs.width + 1, D)
    table = f"generative.layers.{scale_slot.layer}.{'value' if 'scale' in site.fixed else 'table'}"
    scale = scale_slot.constraint.working(state[table])
    weight, bias = state[f"{path}.weight"], state[f"{path}.bias"]
    old = torch.cat([weight, bias.expand(weight.shape[:-1]).unsqueeze(-1)], -1)
    regular = torch.ones_like(found.sum(), dtype=torch.bool)
    for _ in range(1 if "scale" in site.fixed or site.nested("scale", "loc") else CYCLES):
        precision = site.spread(scale**-2, "scale").unsqueeze(-1)  # (joint axes…, 1 or D, 1)
        normal = site.gather(
            (precision.unsqueeze(-1) * gram).expand(*gram.shape[:-3], D, *gram.shape[-2:]), "loc"
        )
        right = site.gather((precision * crossed), "loc")
        new = _solved(normal, right, old, through_origin=not layer.free_bias)
        if "scale" in site.fixed:
            break
        each = site.spread(new, "loc")
        explained = (each * (2 * crossed - (gram @ each.unsqueeze(-1)).squeeze(-1))).sum(-1)
        count = gram[..., -1, -1].expand(squares.shape)
        left, n = site.gather(squares - explained, "scale"), site.gather(count, "scale")
        if "scale" in site.shared:
            left, n = left.sum(-1, keepdim=True), n.sum(-1, keepdim=True)
        floor, jitter = (b.amax(-1, keepdim=True) if "scale" in site.shared else b for b in bounds)
        variance = torch.where(n > 0, left / at_least_tiny(n), scale**2) + jitter
        regular = (variance >= floor).all()
        scale = torch.maximum(variance, floor).sqrt()
    moved = {f"{path}.weight": new[..., :-1]}
    if layer.free_bias:
        moved[f"{path}.bias"] = new[..., -1]
    if "scale" not in site.fixed:
        moved[table] = scale_slot.constraint.predictor(scale)
    return moved, regular


def _location(program: Program, draw: Draw) -> LinearLayer:
    layer = program.generative.layers[draw.slots["loc"].layer]
    assert isinstance(layer, LinearLayer)
    return layer


def _unpacked(found: Tensor, Q: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Σ w ũũᵀ (…, 1 or D, Q, Q), Σ w x ũ (…, D, Q) and Σ w x² (…, D)."""
    packed, crossed, squares = found.split([found.shape[-1] - D * Q - D, D * Q, D], -1)
    triangles = packed.unflatten(-1, (-1, Q * (Q + 1) // 2))
    rows, columns = torch.tril_indices(Q, Q, device=found.device)
    flat = torch.zeros((*triangles.shape[:-1], Q * Q), dtype=found.dtype, device=found.device)
    lower = flat.index_copy(-1, rows * Q + columns, triangles).unflatten(-1, (Q, Q))
    return lower + lower.tril(-1).mT, crossed.unflatten(-1, (D, Q)), squares


def _solved(normal: Tensor, right: Tensor, old: Tensor, *, through_origin: bool) -> Tensor:
    """The normal equations' solution of least norm, (…, D, Q); the old one where a class is empty."""
    if through_origin:
        inner = _solved(normal[..., :-1, :-1], right[..., :-1], old[..., :-1], through_origin=False)
        return torch.cat([inner, torch.zeros_like(inner[..., :1])], -1)
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    unit = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
    spread, axes = torch.linalg.eigh(normal / (unit.unsqueeze(-1) * unit.unsqueeze(-2)))
    kept = spread > RANK * spread[..., -1:]
    inverse = torch.where(kept, 1 / torch.where(kept, spread, 1.0), 0.0)
    along = inverse * (axes.mT @ (right / unit).unsqueeze(-1)).squeeze(-1)
    solution = (axes @ along.unsqueeze(-1)).squeeze(-1) / unit
    return torch.where((diagonal[..., -1:] > 0) & solution.isfinite().all(-1, keepdim=True), solution, old)
