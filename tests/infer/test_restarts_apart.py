"""Restarts of steps that vmap cannot batch, and starts of ordered tables, through `fit`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ppl_gen import EM, By, Categorical, Normal, Spec, family, fit


def test_no_start_of_an_ordered_table_begins_at_the_mirrored_point() -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(m, 1, (n, 1)) for m, n in ((-2, 150), (3, 50), (8, 100))])
    spec = Spec(model={"z": Categorical(3), "x": Normal(1, loc=By("z", ordered=True), scale=By("z"))})
    found = fit(spec, {"x": x}, EM(restarts=12, keep=12))
    assert [mode.hits for mode in found.modes] == [12]


class _Clipped(torch.distributions.Distribution):
    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = torch.distributions.constraints.real

    def __init__(self, loc: torch.Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        y = -0.5 * (x - self.loc) ** 2 - 0.5 * np.log(2 * np.pi)
        y[y < -1000] = -1000  # a mask that differs between restarts
        return y


@family
class ClippedUnit:
    """A unit normal, its log density bounded below."""

    parameters: ClassVar[dict[str, str]] = {"loc": "real"}
    support = "real"

    def distribution(self, loc: torch.Tensor) -> _Clipped:
        return _Clipped(loc)


def test_restarts_that_cannot_run_side_by_side_run_one_by_one() -> None:
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(-2, 1, (60, 1)), random.normal(3, 1, (60, 1))])
    found = fit(Spec(model={"z": Categorical(2), "x": ClippedUnit(loc=By("z"))}), {"x": x}, EM(restarts=3))
    p = found.parameters
    density = norm.pdf(x, p["x"]["loc"][:, 0]) @ p["z"]["probs"]
    assert found.log_likelihood == pytest.approx(np.log(density).sum(), rel=1e-9)
    assert found.run.lowering == "eager"
