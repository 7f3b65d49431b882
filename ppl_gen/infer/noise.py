"""Torch's noise: whose turn it is, its state, and the same state again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

# Torch's noise, its thread count and Pyro's handlers belong to the process: fits in several threads take turns.
TURN = RLock()

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_turn(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that waits until no other thread is in one of its kind."""

    @wraps(function)
    def waiting(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with TURN:
            return function(*args, **options)

    return waiting


def noise_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's noise on the CPU, and on a GPU where the run is on one."""
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_noise_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Noise goes on from there."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
