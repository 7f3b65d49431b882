"""Work on a CUDA device, captured once and launched as a whole from then on.

A small step is dozens of kernels of some microseconds each: launching them one by one takes longer than they do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

log = logging.getLogger("ppl_gen")

Work = Callable[..., list[Tensor]]
Capture = tuple[list[Tensor], Callable[[], None]]  # what a replay writes to, and the replay

AGREES = 1e-2  # of a result's largest entry: sums in another order stay far below, a wrong input does not


class Replayed:
    """Pure work on tensors, captured at its second call.

    Inputs that are the same tensors at both calls are read where they lie, as the rows are and a learning rate that
    is filled anew; the others are copied to where the capture reads. Results are copies, the caller's to keep.
    The capture has to give what the work gives from the same noise; where it does not, or where there can be none,
    a log line says so and the work goes on as it is.

    Args:
        work: tensors in, tensors out; the same operations at every call, and no wait for the device.
        given_up: called where the work is not replayed.
        capture: of work without arguments, on a device.

    """

    def __init__(
        self,
        work: Work,
        given_up: Callable[[], None] = lambda: None,
        capture: Callable[[Work, torch.device], Capture] | None = None,
    ) -> None:
        self.work, self.given_up, self.capture = work, given_up, capture or cuda_graph
        self._before: tuple[Tensor, ...] = ()  # the inputs of the first call, or of the one that was captured
        self._reads: list[Tensor] = []  # what the capture reads
        self._captured: Capture | None = None
        self._replays = True

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The work, or its replay."""
        if not self._before:
            self._before = inputs
            return self.work(*inputs)
        if self._captured is None or self._moved(inputs):
            self._captured = self._checked(inputs) if self._replays else None
        if self._captured is None:
            return self.work(*inputs)
        for own, given in zip(self._reads, inputs, strict=True):
            if own is not given:
                own.copy_(given)
        results, replay = self._captured
        replay()
        return [result.clone() for result in results]

    def _moved(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether one that is read where it lies has come as another tensor."""
        each = zip(self._reads, self._before, inputs, strict=True)
        return any(own is before and before is not given for own, before, given in each)

    def _checked(self, inputs: tuple[Tensor, ...]) -> Capture | None:
        """A capture that gives what the work gives; takes no noise."""
        both = zip(inputs, self._before, strict=True)
        reads = [given if given is before else given.clone() for given, before in both]
        work, device = partial(self.work, *reads), inputs[0].device
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                captured = self.capture(work, device)
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(1)  # not the noise that was captured
                expected = work()
                torch.manual_seed(1)
                captured[1]()
            same = all(map(_agree, captured[0], expected))
            reason = None if same else "its replay gives other numbers"
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason is not None:
            log.warning("no CUDA graph of this step (%s): its kernels are launched one by one", reason)
            self._replays = False
            self.given_up()
            return None
        self._before, self._reads = inputs, reads
        return captured


def cuda_graph(work: Work, device: torch.device) -> Capture:
    """The launches of work as a CUDA graph.

    Raises RuntimeError where the work waits for the device, or does something else that no graph holds.
    """
    sync_mode = torch.cuda.get_sync_debug_mode()
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # libraries set themselves up at their first call, which no graph holds
            try:
                torch.cuda.set_sync_debug_mode("error")
                work()  # a capture that broke off at a wait would leave torch's generator unusable
            finally:
                torch.cuda.set_sync_debug_mode(sync_mode)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may read rows meanwhile
            results = work()
    return results, graph.replay


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are one but for the order of sums."""
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    largest = float(expected.nan_to_num().abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=AGREES * largest, equal_nan=True)
