"""Which algorithm fits a model, and what decided it (rule 21)."""

from __future__ import annotations

from ppl_gen.infer import linear_gaussian, newton
from ppl_gen.infer.algorithms import EM, SVI, Algorithm
from ppl_gen.infer.obstacles import m_step_obstacle
from ppl_gen.program.program import Program


def route(program: Program) -> tuple[Algorithm, str]:
    """EM where every latent is discrete or every one linear-Gaussian, else SVI; with the reason, for the user.

    Example:
        >>> from ppl_gen.program.program import compile_spec
        >>> route(compile_spec("gaussian_mixture", {"x": [[0.0], [1.0], [2.0]]}))[1]
        'EM: every latent is discrete and every M-step has a closed form'

    """
    other = linear_gaussian.obstacle(program)
    if other is None:
        named = ", ".join(f"{name} = {program.spec.model[name]}" for name in program.continuous)
        return EM(), f"EM: every latent is linear-Gaussian ({named})"
    reason = em_obstacle(program)
    if reason is not None:
        return SVI(), f"SVI: {reason}" + (f", and {other}" if program.continuous else "")
    if not program.enumerated:
        maximum = "the posterior's maximum" if any(True for _ in program.priors) else "maximum likelihood"
        found = f"EM: the model has no latent, so EM is {maximum}"
    else:
        found = "EM: every latent is discrete"
    reason = newton_reason(program)
    if reason is None:
        closed = " and every M-step has a closed form" if program.enumerated else " in one M-step"
        return EM(), found + closed
    methods = {"L-BFGS" if group.large else "Newton's method" for group in newton.groups(program)}
    return EM(), f"{found}; {reason}: {' and '.join(sorted(methods, reverse=True))} in the M-step"


def newton_reason(program: Program) -> str | None:
    """Why an M-step is iterative, or None where every one has a closed form."""
    for group in newton.groups(program):
        reasons = [m_step_obstacle(program, program.generative.draws[name]) for name in group.sites]
        return next((r for r in reasons if r), f"{' and '.join(group.sites)} share parameters")
    return None


def em_obstacle(program: Program) -> str | None:
    """Why EM over the values of discrete latents cannot fit this program, or None.

    Where every latent is linear-Gaussian EM is another one: see `linear_gaussian.obstacle`.
    """
    if program.continuous:
        return f"'{program.continuous[0]}' is a continuous latent"
    if program.recognition.draws:
        return f"the guide names the discrete latent '{next(iter(program.recognition.draws))}'"
    for group in newton.groups(program):
        if group.size > newton.MOST_PARAMETERS and not program.enumerated:
            return (
                f"{' and '.join(group.sites)} have {group.size} parameters without a closed-form M-step (Newton's "
                f"method takes {newton.MOST_PARAMETERS}) and there is no latent to sum out, so the likelihood is "
                "climbed by gradient, in minibatches"
            )
    return None
