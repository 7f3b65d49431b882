"""Compiled graphs are kept on disk: the same graph is found again, and never another one's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppl_gen.program.lowering import Lowered


def scaled(by: float, added: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: by * x.exp() + added


def found_again() -> int:
    from torch._dynamo.utils import counters

    return int(counters["aot_autograd"]["autograd_cache_hit"])


@pytest.mark.filterwarnings("ignore")  # inductor warns of itself, and fails where that is an error
def test_a_graph_is_compiled_once_and_one_of_other_numbers_or_shapes_is_another(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, more = torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 7)
    cases = [
        (scaled(2.0, torch.tensor(1.0)), x, False),
        (scaled(2.0, torch.tensor(1.0)), x, True),
        (scaled(2.5, torch.tensor(1.0)), x, False),  # a number written in the graph
        (scaled(2.0, torch.tensor(1.5)), x, None),  # a tensor that it holds, which may enter as an argument
        (scaled(2.0, torch.tensor(1.0)), more, False),
        (scaled(2.0, torch.tensor(1.0)), x.double(), False),
    ]
    for step, value, kept in cases:
        before = found_again()
        lowered = Lowered(step, "compiled")
        result = lowered(value)
        assert lowered.executed == "compiled"
        torch.testing.assert_close(result, step(value), rtol=1e-6, atol=0)
        if kept is not None:
            assert (found_again() > before) == kept


@pytest.mark.filterwarnings("ignore")
def test_a_matrix_without_a_factor_is_the_same_error_as_in_eager_torch():
    lowered = Lowered(lambda x: torch.linalg.cholesky(x).sum() + x.exp().sum(), "compiled")
    lowered(torch.eye(3))
    assert lowered.executed == "compiled"
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        lowered(-torch.eye(3))
