"""A family that reads values is fitted all the same, unless a recorded step was asked for by name."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ppl_gen import EM, SVI, By, Categorical, Spec, family, fit
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import Algorithm

R = np.random.default_rng(0)
X = np.concatenate([R.normal(-2, 1, (60, 1)), R.normal(3, 1, (60, 1))])


class _Unit(torch.distributions.Distribution):
    arg_constraints: dict = {}  # noqa: RUF012
    support = torch.distributions.constraints.real

    def __init__(self, loc: torch.Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * (x - self.loc) ** 2 - 0.5 * np.log(2 * np.pi)


class _Assigning(_Unit):
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        y = self.plain(x).clone()
        y[(x > 100).expand(y.shape)] = 0
        return y


class _Branching(_Unit):
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(x) if bool((x < 100).all()) else torch.zeros_like(self.plain(x))


@family
class AssigningUnit:
    """Writes into its density by a mask."""

    parameters = {"loc": "real"}  # noqa: RUF012
    support = "real"

    def distribution(self, loc: torch.Tensor) -> _Unit:
        return _Assigning(loc)


@family
class BranchingUnit:
    """Branches on a value."""

    parameters = {"loc": "real"}  # noqa: RUF012
    support = "real"

    def distribution(self, loc: torch.Tensor) -> _Unit:
        return _Branching(loc)


@pytest.mark.parametrize("algorithm", [EM(restarts=3), SVI(epochs=2)], ids=["EM", "SVI"])
@pytest.mark.parametrize("own", [AssigningUnit, BranchingUnit])
def test_what_cannot_be_recorded_runs_eagerly_and_says_why(
    own: type, algorithm: Algorithm, caplog: pytest.LogCaptureFixture
) -> None:
    spec = Spec(model={"z": Categorical(2), "x": own(loc=By("z"))})
    with caplog.at_level(logging.WARNING, "ppl_gen"):
        found = fit(spec, {"x": X}, algorithm)
    assert found.run.lowering == "eager"
    assert f"{own.__name__}'s log_prob: a step reads the value of a tensor" in caplog.text
    p = found.parameters
    density = norm.pdf(X, p["x"]["loc"][:, 0]) @ p["z"]["probs"]
    assert found.log_likelihood == pytest.approx(np.log(density).sum(), rel=1e-6)


@pytest.mark.parametrize("algorithm", [EM(restarts=3, lowering="traced"), SVI(epochs=2, lowering="traced")])
def test_a_recorded_step_asked_for_by_name_names_the_family_and_the_way_out(algorithm: Algorithm) -> None:
    spec = Spec(model={"z": Categorical(2), "x": BranchingUnit(loc=By("z"))})
    with pytest.raises(FitError, match=r"^BranchingUnit's log_prob: .* torch.where, or lowering='eager'$"):
        fit(spec, {"x": X}, algorithm)
