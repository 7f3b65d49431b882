"""Which algorithm fits a model, and what decided it (rule 21)."""

from __future__ import annotations

from ppl_gen.infer.algorithms import EM, SVI, Algorithm
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import Constant, Table
from ppl_gen.program.program import Program

# The transforms under which a weighted mean or variance is the maximum likelihood it is without them.
UNBOUNDED = {"real": ("identity",), "positive": ("exp", "softplus")}


def route(program: Program) -> tuple[Algorithm, str]:
    """EM where every latent is discrete and every M-step closed, else SVI; with the reason, for the user.

    Example:
        >>> from ppl_gen.program.program import compile_spec
        >>> route(compile_spec("gaussian_mixture", {"x": [[0.0], [1.0], [2.0]]}))[1]
        'EM: every latent is discrete and every M-step has a closed form'

    """
    reason = em_obstacle(program)
    if reason is not None:
        return SVI(), f"SVI: {reason}"
    if not program.enumerated:
        return EM(), "EM: the model has no latent, so maximum likelihood is one M-step"
    return EM(), "EM: every latent is discrete and every M-step has a closed form"


def em_obstacle(program: Program) -> str | None:
    """Why EM cannot fit this program, or None."""
    if program.continuous:
        return f"'{program.continuous[0]}' is a continuous latent"
    if program.recognition.draws:
        return f"the guide names the discrete latent '{next(iter(program.recognition.draws))}'"
    users: dict[str, str] = {}
    for name, draw in program.generative.draws.items():
        reason = m_step_obstacle(program, draw)
        if reason is not None:
            return f"{reason}, so all latents are summed out and the ELBO is climbed by gradient"
        for key, slot in draw.slots.items():
            if slot.layer in users:
                return f"{users[slot.layer]} and {name}.{key} share one parameter: no closed-form M-step"
            users[slot.layer] = f"{name}.{key}"
    return None


def m_step_obstacle(program: Program, draw: Draw) -> str | None:
    """Why one node has no closed-form M-step, or None."""
    partly, shared = set(), set()
    for key, slot in draw.slots.items():
        layer = program.generative.layers[slot.layer]
        if not isinstance(layer, Constant | Table):
            return f"{draw.name}.{key} = {slot.term} has no closed-form M-step"
        transform = getattr(slot.term, "transform", None)
        if transform is not None and transform not in UNBOUNDED.get(slot.constraint.name, (transform,)):
            return f"{draw.name}.{key} = {slot.term} is kept in a range, which has no closed-form M-step"
        if isinstance(layer, Table) and layer.ordered:
            return f"{draw.name}.{key} = {slot.term} is ordered, which has no closed-form M-step"
        if isinstance(layer, Constant) and 0 < layer.n_free < layer.value.numel():
            partly.add(key)
        narrow = isinstance(layer, Table) and layer.table.shape[len(layer.lookup.levels)] == 1
        if narrow and slot.target.shareable and slot.target.axes[0] != 1:
            shared.add(key)
    reason = draw.family.closed_form(frozenset(partly), frozenset(shared))
    return None if reason is None else f"{reason}: no closed-form M-step"
