"""EM's two steps as pure functions: expected statistics of a block of rows, and new parameters from their sum.

A node whose parameters have a closed form is maximised from its sufficient statistics (F7.3); any other by a step
of Newton's method on Q (F6), whose gradient and Hessian are sums over rows just as well. What is too large for that
is left to `networks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_gen.infer import newton, regression
from ppl_gen.infer.enumeration import Rows, State, Step, evaluated_sites, latent_axes, marginals_of
from ppl_gen.infer.sites import site_of, site_statistics
from ppl_gen.program.families import in_standard_units
from ppl_gen.program.program import Program


def expectation_step(program: Program, only: Sequence[str] | None = None) -> Step:
    """The E-step on one block: (state, rows, weights, start=None) → Σ_d w_d log p(x_d), statistics.

    Statistics are by site where the M-step is closed, and by group of sites ("y + w") where it is Newton's: see
    `newton`. Of an enumerated node there are always its own, how often each of its values is expected. `only`
    names the sites that are wanted, all of closed form; all of them by default.

    Sums of squares cancel far from 0: state and rows are to be in standard units (`Standard`).
    """
    draws, groups = program.generative.draws, newton.small_groups(program) if only is None else ()
    iterative = {name for group in newton.groups(program) for name in group.sites} if only is None else ()
    counted = [n for n in draws if n not in iterative or n in program.enumerated] if only is None else only

    def step(
        state: State, rows: Rows, weights: Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with in_standard_units():
            log_probs, values = evaluated_sites(program, state, rows)
            axes = list(latent_axes(program, rows).values())
            rows_log_marginal, marginals = marginals_of(log_probs, axes, weights, start)
            statistics: dict[str, Tensor] = {
                name: site_statistics(program, draws[name], marginals[name], rows, state) for name in counted
            }
            for group in groups:
                expected = {name: marginals[name] for name in group.sites}
                statistics |= newton.statistics(program, group, state, values, expected)
        return (rows_log_marginal * weights).sum(), statistics

    return step


def prior_step(program: Program) -> Step:
    """State → Σ log p of all priors, 0 where there are none: in the units that the state is in."""

    def step(state: State) -> Tensor:
        value: Tensor = torch.func.functional_call(program, state, ("log_prior",))
        return value

    return step


def maximisation_step(program: Program, only: Sequence[str] | None = None) -> Step:
    """The M-step (F7.3): (state, statistics, bounds) → the new state, and whether it is regular.

    `bounds[name]` holds the variance floor and jitter of an observed node, each (D,).
    """
    draws, groups = program.generative.draws, newton.small_groups(program) if only is None else ()
    iterative = {name for group in newton.groups(program) for name in group.sites} if only is None else ()
    wanted = [draws[name] for name in (draws if only is None else only) if name not in iterative]

    def step(
        state: State, statistics: dict[str, Tensor], bounds: dict[str, tuple[Tensor, Tensor]]
    ) -> tuple[State, Tensor]:
        new, regular = (
            dict(state),
            [torch.ones((), dtype=torch.bool, device=next(iter(state.values())).device)],
        )
        for draw in wanted:
            current, site = site_of(program, draw, state)
            if regression.is_regression(program, draw):
                moved, sound = regression.maximise(
                    program, draw, state, site, statistics[draw.name], bounds[draw.name]
                )
                new |= moved
                regular.append(sound)
                continue
            working, sound = draw.family.maximise(statistics[draw.name], current, site, *bounds[draw.name])
            regular.append(sound)
            for key, slot in draw.slots.items():
                if key not in site.fixed:
                    path = f"generative.layers.{slot.layer}.table"
                    predictor = slot.constraint.predictor(working[key])
                    new[path] = site.keep(key, predictor, state[path])
        for group in groups:
            moved, sound = newton.step(program, group, state, statistics, bounds)
            new |= moved
            regular.append(sound)
        return new, torch.stack(regular).all()

    return step
