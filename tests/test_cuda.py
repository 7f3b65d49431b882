"""On a CUDA device the same fits come out; without one nothing here runs.

Its noise is not the CPU's: what draws is compared with itself lowered otherwise, what does not with the CPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_gen import EM, SVI, Checkpoints, Rows, fit, read_spec, resume
from ppl_gen.infer.ascent import Ascent

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

R = np.random.default_rng(2)
X = (R.random((600, 20)) < R.random(20)).astype(float)
BERNOULLI = read_spec("vae_bernoulli").replace("z.dim", 2).replace("x.logits.hidden", [16])


def test_em_ends_where_it_ends_on_the_cpu():
    spec = read_spec("gaussian_mixture").replace("z.k", 2)
    rows = np.concatenate([R.normal(size=(200, 2)), 5 + R.normal(size=(200, 2))])
    here, there = fit(spec, rows, EM(), seed=0), fit(spec, rows, EM(), seed=0, device="cuda")
    np.testing.assert_allclose(there.log_likelihood, here.log_likelihood, rtol=1e-8)
    assert there.certificate.ok, str(there.certificate)


@pytest.mark.filterwarnings("ignore")  # inductor warns of itself
@pytest.mark.parametrize("autocast", [False, True])
def test_every_lowering_of_svi_takes_the_same_steps(autocast):
    told = {}
    for how in ("eager", "traced", "compiled", "captured"):
        algorithm = SVI(epochs=5, batch_size=100, warm_up=2, lowering=how, autocast=autocast)
        run = fit(BERNOULLI, X, algorithm, seed=0, device="cuda").run
        assert run.lowering == how
        told[how] = run.history
    for how in ("traced", "compiled"):
        np.testing.assert_allclose(told[how], told["eager"], rtol=1e-2 if autocast else 1e-4)
    np.testing.assert_allclose(told["captured"], told["compiled"], rtol=1e-6)


def test_streamed_rows_come_through_pinned_memory(tmp_path: Path):
    pd.DataFrame(X, columns=[f"x{i}" for i in range(20)]).to_parquet(tmp_path / "rows.parquet")
    algorithm = SVI(epochs=20, batch_size=100, learning_rate=1e-2)
    here = fit(BERNOULLI, X, algorithm, seed=0)
    there = fit(BERNOULLI, Rows(tmp_path / "rows.parquet"), algorithm, seed=0, device="cuda")
    assert abs(there.elbo - here.elbo) < 0.05 * len(X)  # other noise in another order


class CutShortError(Exception):
    """Stands for whatever ends a process."""


def test_a_captured_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch):
    algorithm = SVI(epochs=4, batch_size=100, lowering="captured")
    whole = fit(BERNOULLI, X, algorithm, seed=0, device="cuda")
    advance, steps = Ascent.advance, [0]

    def cut_short(self, *args, **options):
        steps[0] += 1
        if steps[0] == 15:
            raise CutShortError
        return advance(self, *args, **options)

    kept = Checkpoints(tmp_path, every_epochs=1)
    monkeypatch.setattr(Ascent, "advance", cut_short)
    with pytest.raises(CutShortError):
        fit(BERNOULLI, X, algorithm, seed=0, device="cuda", checkpoint=kept)
    monkeypatch.setattr(Ascent, "advance", advance)
    resumed = resume(tmp_path, X)
    assert resumed.run.lowering == "captured"
    assert resumed.run.history == whole.run.history
