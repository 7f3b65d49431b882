"""What is captured gives what runs by itself, and its caller notices nothing.

Here a function that runs the work again stands for the graph: like one, it reads and writes the same memory at
every replay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_gen import SVI, compile_spec
from ppl_gen.infer.ascent import Ascent
from ppl_gen.program import capture
from ppl_gen.program.capture import Capture, Replayed, Work
from ppl_gen.program.lowering import Lowered, pyro_scope


def run_again(work: Work, _device: torch.device) -> Capture:
    results = [result.clone() for result in work()]

    def replay() -> None:
        for own, new in zip(results, work(), strict=True):
            own.copy_(new)

    return results, replay


def of_the_first_noise(work: Work, _device: torch.device) -> Capture:
    """A capture that has taken its noise for a constant."""
    results = [result.clone() for result in work()]
    return results, lambda: None


def impossible(_work: Work, _device: torch.device) -> Capture:
    raise RuntimeError("called a synchronizing CUDA operation\nand more")


def noisy(rows: Tensor, rate: Tensor, index: Tensor, at: Tensor) -> list[Tensor]:
    return [at + rate * (rows[index].mean(0) + torch.randn(3)), (rows[index] > 0).sum()]


def driven(step: Callable[..., list[Tensor]], swap_at: int = 99) -> list[Tensor]:
    """Eight steps, each from the last one's results; the rate is filled anew, the rows once exchanged."""
    torch.manual_seed(3)
    rows, rate = torch.linspace(-2, 2, 30).reshape(10, 3), torch.tensor(0.5)
    seen = [torch.zeros(3)]
    for turn in range(8):
        if turn == 4:
            rate.fill_(0.1)
        if turn == swap_at:
            rows = rows.flip(0) * 2
        at, count = step(rows, rate, torch.tensor([turn, 9 - turn]), seen[-1])
        seen += [at] if turn < 7 else [at, count]
    return seen


@pytest.mark.parametrize("swap_at", [99, 1, 5])
def test_replays_give_the_same_bits_as_the_work_and_leave_earlier_results_alone(swap_at):
    replayed = Replayed(noisy, capture=run_again)
    for found, expected in zip(driven(replayed, swap_at), driven(noisy, swap_at), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        (impossible, "called a synchronizing CUDA operation"),
        (of_the_first_noise, "its replay gives other numbers"),
    ],
)
def test_a_capture_that_fails_or_gives_other_numbers_is_not_used_and_said(stand_in, reason, caplog):
    given_up: list[bool] = []
    replayed = Replayed(noisy, lambda: given_up.append(True), stand_in)
    for found, expected in zip(driven(replayed), driven(noisy), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert given_up == [True]
    assert caplog.text.count(reason) == 1


@pytest.mark.filterwarnings("ignore")  # inductor warns of itself
def test_a_captured_step_of_svi_moves_parameters_as_the_compiled_one(monkeypatch):
    monkeypatch.setattr(capture, "cuda_graph", run_again)
    rows = {"x": np.random.default_rng(0).normal(size=(40, 5))}
    program = compile_spec("vae", rows)
    data, ends = program.tensors(rows), {}
    for how in ("compiled", "captured"):
        torch.manual_seed(1)
        with pyro_scope():
            ascent = Ascent(program, SVI(batch_size=10, warm_up=1), data, planned=8)
            ascent.step = Lowered(ascent.step.step, how)
            for turn in range(6):
                ascent.warm_to(turn / 6)
                bound = ascent.advance(torch.arange(turn, turn + 10), full=True)
        assert ascent.step.executed == how
        ends[how] = [*ascent.blocks, bound]
    for found, expected in zip(ends["captured"], ends["compiled"], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
