"""Tables made anew in kept memory, and blocks on several threads: the same bits, and no memory that grows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, MultivariateNormal, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By
from ppl_gen.infer import engine
from ppl_gen.infer.engine import Engine
from ppl_gen.program.families.base import in_standard_units
from ppl_gen.program.families.multivariate_normal import WHITEN_FROM, CholeskyNormal
from ppl_gen.program.lowering import Lowered
from ppl_gen.program.piles import PILES, Crew, piles
from ppl_gen.program.program import compile_spec

X = np.random.default_rng(0).normal(size=(10_000, 4)) + 3 * (np.arange(10_000) % 2)[:, None]
FULL = MultivariateNormal(loc=By("z"), cov=By("z"))
DIAGONAL = Normal(loc=By("z"), scale=By("z"))


def engine_on(node: object, how: str) -> tuple[Engine, dict[str, torch.Tensor]]:
    spec = Spec(model={"z": Categorical(3), "x": node})
    table = read_table({"x": X}, spec)
    program = compile_spec(spec, table.schema)
    state = {path: value.clone() for path, value in program.state_dict().items()}
    draw = torch.Generator().manual_seed(1)
    apart = {path: value + torch.randn(value.shape, generator=draw) for path, value in state.items()}
    return Engine(program, table, state, 1, how), {path: value.unsqueeze(0) for path, value in apart.items()}


def test_two_stacks_in_one_graph_have_memory_of_their_own():
    """The pieces of one were once kept under the name of the other."""
    a, b = (torch.randn(8, 20_000, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def step(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        one, other = torch.cat([a, b]), torch.cat([b, a])
        return [(one * 2).sum(1), (other * 3).sum(1), (one * other).sum(1)]

    with torch.no_grad():
        traced = Lowered(step, "traced")
        assert all(torch.equal(x, y) for x, y in zip(traced(a, b), step(a, b), strict=True))


@pytest.mark.parametrize("node", [FULL, DIAGONAL], ids=["full", "diagonal"])
def test_an_e_step_has_the_same_bits_eager_and_traced_on_one_thread_or_several(monkeypatch, node):
    monkeypatch.setattr(engine, "BLOCK_BYTES", 1)
    before = torch.get_num_threads()
    found = []
    try:
        with torch.no_grad():
            for how, threads in (("eager", 1), ("traced", 1), ("traced", 3)):
                torch.set_num_threads(threads)
                steps, state = engine_on(node, how)
                assert len(steps.blocks) > PILES
                steps.e_step(
                    {path: value + 1 for path, value in state.items()}
                )  # what a later call might keep
                value, statistics = steps.e_step(state)
                found.append([value, *[statistics[name] for name in sorted(statistics)]])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_products_of_columns_are_not_kept_for_all_rows():
    steps, state = engine_on(FULL, "traced")
    with torch.no_grad():
        steps.e_step(state)
    own = sum(block["x"].nbytes for block in steps.blocks)
    assert steps._expect.cached < own / 4  # the features are 15 numbers a row of 4


def test_a_table_that_is_written_over_keeps_its_constant_rows():
    def step(rows: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        columns = rows.T
        stacked = torch.cat([torch.ones_like(columns[:1]), columns, columns * columns, 2 * columns * columns])
        return (stacked * by).sum(1)

    rows, traced = torch.randn(3_000, 2), Lowered(step, "traced", steady=(0,))
    for by in (torch.tensor(2.0), torch.tensor(3.0)):
        assert torch.equal(traced(rows, by), step(rows, by))


def test_a_pile_that_fails_is_an_error_of_the_call_and_leaves_torchs_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    crew = Crew()
    try:
        with pytest.raises(ZeroDivisionError):
            crew.each(lambda pile: 1 // (pile.start - 3), piles(8))
        assert crew.each(len, piles(40)) == [len(pile) for pile in piles(40)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("least", [1e-2, 1e-8])
def test_products_of_columns_lose_no_more_digits_than_the_condition_of_the_covariance_costs(least):
    random = np.random.default_rng(3)
    D = WHITEN_FROM - 1
    turned = np.linalg.qr(random.normal(size=(D, D)))[0]
    roots = np.geomspace(least, 1, D) ** 0.5
    factor = np.linalg.cholesky((turned * roots**2) @ turned.T)
    loc = random.normal(size=D)
    x = loc + random.normal(size=(500, D)) @ factor.T
    apart = np.linalg.solve(factor, (x - loc).T)
    expected = stats.norm.logpdf(apart).sum(0) - np.log(np.diag(factor)).sum()
    law = CholeskyNormal(torch.tensor(loc)[None, None], torch.tensor(factor)[None, None])
    with in_standard_units():
        found = law.log_prob(torch.tensor(x)).reshape(-1).numpy()
    bound = 3 * np.finfo(float).eps * (x**2).sum(1).max() / least
    assert np.abs(found - expected).max() < max(bound, 1e-12)
    assert math.isclose(found.sum(), expected.sum(), rel_tol=1e-9)
