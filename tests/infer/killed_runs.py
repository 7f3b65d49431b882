"""A process that forks runs, has them killed, and lets others go on; run by test_checkpoints.py.

    python killed_runs.py random SEED | python killed_runs.py every

"random" kills at random moments, "every" once at each file operation of a run, with a file half written before it.
Prints one JSON line: whether every run ended at the bits of the one that nobody killed, and how many were killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ppl_gen import SVI, Checkpoints, FitError, fit, resume, vae
from ppl_gen.results import atomic, checkpoint_files

ROWS = np.random.default_rng(0).normal(size=(60, 3))
SPEC = vae(1, (4,))
MODULES = {"fit": sys.modules["ppl_gen.fitting"], "resume": sys.modules["ppl_gen.resuming"]}
# One with everything that has a memory, on every step; one by another optimiser, recorded, at epochs.
ALGORITHMS = [
    (
        SVI(epochs=12, batch_size=16, lowering="eager", validation=0.2, patience=9, window=2, warm_up=3),
        {"every_minutes": 1e-9},
    ),
    (
        SVI(
            epochs=10,
            batch_size=16,
            lowering="traced",
            optimizer="nadam",
            schedule="cosine",
            learning_rate=0.01,
        ),
        {"every_epochs": 1},
    ),
]


def bits(run) -> list:
    """All numbers of a run, as text that differs where a bit does."""
    state = {path: value.numpy().tobytes().hex() for path, value in sorted(run.state.items())}
    return [state, list(map(float.hex, run.history)), list(map(float.hex, run.held_out)), run.status.name]


def forked(work: Callable[[], object]) -> int:
    """The process that does it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def going_on(folder: Path, algorithm: SVI, every: dict, answer: Path) -> None:
    """Begin, or go on where there is a checkpoint; leave the answer in a file."""
    try:
        run = resume(folder, ROWS, algorithm=algorithm)
    except FitError as error:
        if "no checkpoints here" not in str(error):
            raise
        run = fit(SPEC, ROWS, algorithm, checkpoint=Checkpoints(folder, **every))
    answer.write_text(json.dumps(bits(run)))


def ended(pid: int) -> bool:
    """Whether a process came to its end by itself; an error of its own ends us too."""
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return os.WIFEXITED(status)


def at_random(seed: int) -> tuple[bool, int]:
    chance, kills, same = random.Random(seed), 0, True
    for algorithm, every in ALGORITHMS:
        with tempfile.TemporaryDirectory() as place:
            folder, answer, whole = Path(place) / "run", Path(place) / "answer", Path(place) / "whole"
            begun = time.monotonic()
            assert ended(
                forked(lambda a=algorithm, w=whole: w.write_text(json.dumps(bits(fit(SPEC, ROWS, a)))))
            )
            lasts, lives = time.monotonic() - begun, 0
            while True:
                pid = forked(partial(going_on, folder, algorithm, every, answer))
                if lives < 3:
                    time.sleep(chance.uniform(0, lasts))
                    os.kill(pid, signal.SIGKILL)
                if ended(pid):
                    break
                lives, kills = lives + 1, kills + 1
            same &= answer.read_text() == whole.read_text()
    return same, kills


def at_every_operation() -> tuple[bool, int]:
    algorithm = SVI(epochs=2, batch_size=32, lowering="eager")
    every = {"every_epochs": 1}
    whole = json.dumps(bits(fit(SPEC, ROWS, algorithm)))
    same, k = True, 0
    while True:
        k += 1
        with tempfile.TemporaryDirectory() as place:
            folder, answer = Path(place) / "run", Path(place) / "answer"

            def cut(k=k, folder=folder, answer=answer) -> None:
                killed_at(k)
                going_on(folder, algorithm, every, answer)

            if ended(forked(cut)):
                return same, k - 1
            assert ended(forked(lambda f=folder, a=answer: going_on(f, algorithm, every, a)))
            same &= answer.read_text() == whole


def killed_at(k: int) -> None:
    """From now on the k-th file operation of a checkpoint is not survived."""
    left = [k]

    def last() -> bool:
        left[0] -= 1
        return left[0] == 0

    def before(function: Callable) -> Callable:
        def operation(*args, **options):
            if last():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return operation

    def half(path: Path, content: bytes) -> None:
        if last():
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        atomic.write(path, content)

    checkpoint_files.write = half
    os.rename, os.replace, os.fsync = before(os.rename), before(os.replace), before(os.fsync)
    shutil.rmtree = before(shutil.rmtree)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module in MODULES.values():
        module.conclude = lambda program, table, run, *_: run  # what follows a run is not what is tested
    same, kills = at_random(int(sys.argv[2])) if sys.argv[1] == "random" else at_every_operation()
    print(json.dumps({"same": same, "kills": kills}))
