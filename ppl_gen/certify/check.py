"""check: before any fitting, every term of the objective by Pyro and by its formula, side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ppl_gen import reference
from ppl_gen.certify import bounds, evidence, lines
from ppl_gen.certify.certificate import Certificate, Line
from ppl_gen.certify.evaluate import joint_states
from ppl_gen.certify.predictors import Array
from ppl_gen.certify.subject import Subject, subject_of
from ppl_gen.data.table import Table
from ppl_gen.infer.tables import start_tables
from ppl_gen.program.program import Program

JITTER = 0.1  # by which starting values are moved, so that classes differ and a mix-up shows


def check(program: Program, table: Table, *, seed: int = 0) -> Certificate:
    """Compare Pyro with the formulas term by term, at jittered starting values, on at most 1 000 rows.

    Discrete latents: log p of every node, log p(x) (F1), responsibilities (F7.1), the bound that touches it
    (F7.2), Q (F6), and the two forms of EM. Continuous latents: log p of every node, log q, the sampled bound
    (F9.7), and where all is normal the KL and the bound in closed form (F9.5, F9.1).

    Args:
        program: as compiled; its own parameters are not touched.
        table: the rows.
        seed: of rows, jitter and draws.

    Returns:
        A Certificate whose lines give both values, summed over rows, and the largest difference of a row.

    Example:
        >>> import numpy as np
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.files import read_spec
        >>> from ppl_gen.program.program import compile_spec
        >>> spec = read_spec("poisson_mixture")
        >>> table = read_table({"x": np.array([[0], [1], [1], [0], [9], [8], [9], [7]])}, spec)
        >>> found = check(compile_spec(spec, table.schema), table)
        >>> found.ok, [line.name for line in found.lines][:4]
        (True, ['log p(z)', 'log p(x|z)', 'log p(x)', 'responsibilities'])

    """
    subject = subject_of(program, table, seed, _jittered(program, table, seed))
    made = _discrete(subject) if subject.exact else _continuous(subject, seed)
    return Certificate(tuple(made))


def _jittered(program: Program, table: Table, seed: int) -> dict[str, torch.Tensor]:
    state = start_tables(program, table, seed)
    noise = torch.Generator().manual_seed(seed)
    for path, parameter in program.named_parameters():
        moved = state[path].cpu()
        drawn = torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
        state[path] = moved + JITTER * drawn.to(moved)
    return state


def compared(name: str, pyro: Array, formula: Array, number: str) -> Line:
    """One term both ways: (…,) arrays of its values; `number` is the formula's."""
    pyro, formula = np.broadcast_arrays(pyro, formula)
    value, limit = lines.farthest(pyro, formula), lines.tolerance(formula)
    text = f"{number}: Pyro {np.sum(pyro):.10g}, formula {np.sum(formula):.10g}"
    return Line(name, bool(value <= limit), value, limit, text)


def _conditional(subject: Subject, name: str) -> str:
    parents = ",".join(subject.program.spec.node_parents(name))
    return f"log p({name}|{parents})" if parents else f"log p({name})"


def _discrete(subject: Subject) -> Iterator[Line]:
    states = joint_states(subject.model, subject.program.enumerated)
    formula = subject.model.log_densities(subject.rows | states)
    for name, pyro in evidence.site_log_probs(subject).items():
        yield compared(_conditional(subject, name), pyro, formula[name], "every row and class")
    table = bounds.exact_table(subject)
    log_p = reference.log_marginal(table)
    observed = ",".join(subject.program.schema.roles.observed)
    yield compared(f"log p({observed})", evidence.log_marginal(subject), log_p, "F1")
    if not subject.program.enumerated:
        return
    r, marginals = reference.responsibilities(table), evidence.responsibilities(subject)
    several = len(subject.program.enumerated) > 1
    for name in subject.program.enumerated:
        own = bounds.site_marginals(subject, r, marginals[name])
        value, limit = lines.farthest(marginals[name], own), lines.tolerance(table)
        first = [float(part.reshape(-1, part.shape[-1])[0].sum()) for part in (marginals[name], own)]
        text = f"F7.1; rows in the first class of {name}: Pyro {first[0]:.10g}, formula {first[1]:.10g}"
        yield Line(
            f"responsibilities {name}" * several or "responsibilities", value <= limit, value, limit, text
        )
    bound = reference.lower_bound(table, r)
    yield compared("LB at q = r", np.array(evidence.enumerated_bound(subject)), bound.sum(), "F7.2")
    q = reference.q_function(table, table)
    sites = evidence.site_log_probs(subject)
    expected = sum(float((marginals[name] * np.maximum(sites[name], -1e300)).sum()) for name in sites)
    yield compared("Q", np.array(expected), np.array(q), "F6")
    entropy = float(reference.entropy(r).sum())
    form_1 = np.array(reference.em_form_1_objective(table, r))
    yield compared("EM form 1", np.array(expected + entropy), form_1, "F5 against Pyro's Q plus the entropy")


def _continuous(subject: Subject, seed: int) -> Iterator[Line]:
    pyro, drawn = evidence.sampled_bound(subject, seed)
    model, guide = evidence.site_log_probs_at(subject, drawn)
    values = {**subject.rows, **drawn}
    if not subject.program.enumerated:
        for name, log_p in model.items():
            formula = subject.model.log_density(name, values)
            yield compared(_conditional(subject, name), log_p, formula, "one draw a row")
    for name, log_q in guide.items():
        yield compared(f"log q({name})", log_q, subject.guide.log_density(name, values), "one draw a row")
    yield compared("sampled bound", pyro, bounds.sampled_bound(subject, drawn), "F9.7")
    if subject.mean_field:
        kl = bounds.kl_terms(subject, drawn)
        for name, found in evidence.kl_terms(subject, drawn).items():
            yield compared(f"-KL({name})", -found, -kl[name], "F9.5, and F9.3 with unit variances")
        closed, drawn = evidence.closed_bound(subject, seed)
        terms = sum(bounds.kl_terms(subject, drawn).values(), np.zeros(()))
        formula = (bounds.reconstruction(subject, drawn) - terms).sum()
        yield compared("closed bound", np.array(closed), formula, "F9.5, and F9.1 with unit variances")
