"""What our loop costs over the bare step: rows, history, progress, callbacks and checkpoints, in process time.

    python benchmarks/svi_loop.py [--epochs 30 --rounds 15]

MLP 64, 8 latents, 64 pixels, batch 128, float32, one thread. The bare step is the lowered graph: rows picked, loss,
gradient, guard, Adam. The loop is all that `run_svi` does between its first step and its last, and both are timed
in one run, so that other processes weigh on both. Checkpoints are every five minutes, as they are by default (one
is written, at the end), and then one an epoch, which is 14 steps here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from sklearn.datasets import load_digits
from timing import threads

from ppl_gen import MLP, SVI, Checkpoints, Linear, Normal, Program, Spec, compile_spec
from ppl_gen.data.reading import read_table
from ppl_gen.infer.callbacks import Audience, Callback, Epoch
from ppl_gen.infer.checkpoints import Keeper
from ppl_gen.infer.feeding import Kept
from ppl_gen.infer.status import Interrupt
from ppl_gen.infer.svi import data_of
from ppl_gen.infer.training import Training
from ppl_gen.program.lowering import Lowered, pyro_scope
from ppl_gen.results.checkpoint_identity import open_folder

BATCH = 128
DIGITS = (load_digits().data / 16).astype(np.float32)
SPEC = Spec(
    model={"z": Normal(8, loc=0, scale=1), "x": Normal(64, loc=MLP("z", [64]), scale=1)},
    guide={"h": MLP("x", [64]), "z": Normal(8, loc=Linear("h"), scale=Linear("h"))},
)
ROWS = DIGITS[: len(DIGITS) // BATCH * BATCH]  # whole batches


def program() -> Program:
    """The declared VAE at its starting parameters."""
    return compile_spec(SPEC, {"x": DIGITS}, seed=0)


class Counting(Callback):
    """A callback that does next to nothing."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch(self, epoch: Epoch) -> None:
        """Count."""
        self.epochs += 1


def training(epochs: int, **options: object) -> Training:
    """A run about to begin, its step lowered."""
    torch.manual_seed(0)
    own, table = program(), read_table({"x": ROWS}, SPEC)
    algorithm = SVI(epochs=epochs, batch_size=BATCH, lowering="traced", **options)
    return Training(own, table, Kept(data_of(own, table)), algorithm, 0, Interrupt())


class Timed:
    """The bare lowered step, with the process time spent in it."""

    def __init__(self, step: Lowered) -> None:
        self.step, self.how, self.executed, self.spent = step, step.how, step.executed, 0.0

    def __call__(self, *args: object) -> object:
        """One step."""
        start = time.process_time()
        found = self.step(*args)
        self.spent += time.process_time() - start
        return found


def looped(epochs: int, keeper: Keeper | None, **options: object) -> tuple[float, float]:
    """Process time of a run's loop and of the steps in it, after a first epoch that lowers the step."""
    run, audience = training(epochs + 1, **options), Audience(None, [Counting()], [])
    run._steps(None, None)
    run._end_epoch(audience)
    run.ascent.step = run.ascent.ragged = timed = Timed(run.ascent.step)
    start = time.process_time()
    run.run(audience, keeper)
    return time.process_time() - start, timed.spent


def main() -> None:
    """Print the ratios, and what one checkpoint takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    table, first = read_table({"x": ROWS}, SPEC), program()
    with threads(1), pyro_scope(), tempfile.TemporaryDirectory() as place:

        def keeper(name: str, **every: object) -> Keeper:
            asked = Checkpoints(Path(place) / name, replace=True, **every)
            chosen = SVI(batch_size=BATCH)
            return open_folder(asked, first, table, chosen, seed=0, reason="", data=None, weights=None)

        taken: dict[str, list[tuple[float, float]]] = {
            "loop": [],
            "with checkpoints": [],
            "one every epoch": [],
            "held-out tenth": [],
        }
        for _ in range(options.rounds):
            taken["loop"].append(looped(options.epochs, None))
            taken["with checkpoints"].append(looped(options.epochs, keeper("minutes")))
            taken["one every epoch"].append(looped(options.epochs, keeper("epochs", every_epochs=1)))
            taken["held-out tenth"].append(looped(options.epochs, None, validation=0.1, patience=100))
        for name, pairs in taken.items():
            ratios = [whole / steps for whole, steps in pairs]
            spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{name:18} {statistics.median(ratios):.3f} of the bare steps {spread}")
        often = [(whole - steps) / options.epochs * 1e3 for whole, steps in taken["one every epoch"]]
        plain = [(whole - steps) / options.epochs * 1e3 for whole, steps in taken["loop"]]
        step = [steps / options.epochs / (len(ROWS) // BATCH) * 1e3 for _, steps in taken["loop"]]
        cost = statistics.median(often) - statistics.median(plain)
        print(f"bare step {statistics.median(step):.3f} ms; a checkpoint {cost:.2f} ms of process time")


if __name__ == "__main__":
    main()
