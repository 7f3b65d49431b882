"""An SVI run under way: epochs, what ends them, what is kept of it, and how it goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.ascent import Ascent
from ppl_gen.infer.ascent_step import WEIGHTS, picked
from ppl_gen.infer.callbacks import Audience, Epoch
from ppl_gen.infer.checkpoints import Keeper, Pace, Snapshot, packed
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.feeding import Feed, Minibatch, side_by_side
from ppl_gen.infer.held_out import HeldOut
from ppl_gen.infer.noise import noise_state, set_noise_state
from ppl_gen.infer.nonfinite import first_non_finite
from ppl_gen.infer.pair import Counted, Pair, as_pair
from ppl_gen.infer.patience import Watch
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Interrupt, Status
from ppl_gen.program.program import Program

log = logging.getLogger("ppl_gen")

LOOK = 64  # steps between two looks at the bounds: each waits for the device
LATER = "at last in "
FEWER = 6  # standard deviations of a count: fewer held-out rows than that are no chance
LEAST_RATE = 2.0**-10  # of the learning rate: what ten halvings leave


class Training:
    """One SVI run under way.

    Attributes:
        ascent: parameters and the optimiser's memory.
        history: each finished epoch's ELBO, in nats summed over rows.
        held_out: that of the held-out rows, where there are any.
        bounds: of the steps of the epoch at hand.
        good: where the epoch began: parameters, the optimiser's memory, the state of the noise.
        safe: the same of the epoch with the highest ELBO so far, the epochs before it, and that ELBO. An epoch
            that has blown up may still be finite: what follows it does not start from there.
        status: how it ended; None while it runs.

    """

    def __init__(
        self,
        program: Program | Pair,
        table: Counted,
        feed: Feed,
        algorithm: SVI,
        seed: int,
        interrupt: Interrupt,
        resumed: Snapshot | None = None,
    ) -> None:
        self.pair, self.table, self.algorithm, self.seed = as_pair(program), table, algorithm, seed
        self.interrupt, self.device = interrupt, self.pair.device
        self.status: Status | None = None
        self.history: list[float] = []
        self.held_out: list[float] = []
        self.bounds: list[Tensor] = []
        self.notes: list[str] = []
        self.best: State | None = None
        self.feed = self._split(feed)
        self.n_units = self.feed.n_units
        self.size = min(algorithm.batch_size, self.n_units)
        self.batches = math.ceil(self.n_units / self.size)
        torch.manual_seed(seed)
        lowered = algorithm if resumed is None else replace(algorithm, **resumed["lowered"])
        planned = algorithm.epochs * self.batches
        self.ascent = Ascent(self.pair, lowered, self.feed.first(self.size), planned, self.n_units)
        self.looked = 0
        if resumed is not None:
            self._restore(resumed)
        else:
            self.good = self._here()
            self.safe: Snapshot = {"point": self.good, "epochs": 0, "elbo": -math.inf}

    def _split(self, feed: Feed) -> Feed:
        """The rows to learn from; the others, and who watches them, are put in their places."""
        self.held: HeldOut | None = None
        self.watch: Watch | None = None
        n, algorithm = self.table.n_units, self.algorithm
        if algorithm.validation > 0:
            feed, held = feed.parted(algorithm.validation, self.seed)
            self.held = HeldOut(self.pair, algorithm, held, self.seed)
            n -= feed.n_units
            expected = algorithm.validation * self.table.n_units
            if n < expected - FEWER * math.sqrt(expected):
                self.notes.append(
                    f"{n} of {self.table.n_units} rows are held out: validation={algorithm.validation:g} of them "
                    "would not fit into memory"
                )
        if Watch.wanted(algorithm):
            self.watch = Watch(algorithm, n * self._share)
        return feed

    def run(self, audience: Audience, keeper: Keeper | None = None) -> None:
        """All epochs, or as many as there are before something ends them."""
        try:
            self._run(audience, keeper)
        finally:
            if keeper is not None:
                keeper.release()

    def _run(self, audience: Audience, keeper: Keeper | None) -> None:
        pace = None
        if keeper is not None:
            packed(self._snapshot(), {}, "checkpoint")  # what no file can hold is found out at the beginning
            pace = Pace(keeper.checkpoints, len(self.history))
        while self.status is None:
            if not self._steps(keeper, pace):
                self._fail()
                continue
            if len(self.bounds) == self.batches:
                self._end_epoch(audience)
            if self.status is None and self.interrupt:
                self.status = Status.INTERRUPTED
            if self.status is not None or self._due(pace):
                self._keep(keeper, pace)

    def concluded(self) -> Run:
        """The Run, classes in order of decreasing weight where the posterior over them is exact."""
        status, notes = self.status or Status.EPOCHS_DONE, list(self.notes)
        floored: tuple[str, ...] = ()
        whole = status in (Status.EPOCHS_DONE, Status.LEVELLED_OFF, Status.OVERFITTING)
        state = self.best if whole and self.best is not None else self.ascent.state()
        if whole and self.watch is not None:
            notes += self.watch.notes(status)
        final = {path: value.detach().clone() for path, value in state.items()}
        if status.usable:
            final = self.pair.concluded(final, self.table)
            rows = {name: column for name, column in self.ascent.data.items() if name != WEIGHTS}
            floored = self.pair.floored(final, rows)
        if floored:
            notes.append(
                f"scale held at its floor: {', '.join(floored)}; without one the likelihood has no upper bound, so "
                "that log-likelihoods say little here"
            )
        return Run(
            final,
            tuple(self.history),
            status,
            lowering=self.ascent.executed,
            notes=tuple(notes),
            algorithm="SVI",
            floored=floored,
            held_out=tuple(self.held_out),
        )

    @property
    def _share(self) -> float:
        """What a row of average weight counts: bounds are summed as if it were 1."""
        return self.table.total / self.table.n_units if self.table.weights is not None else 1.0

    def _minibatches(self, skip: int) -> AbstractContextManager[Iterator[Minibatch]]:
        """The epoch's rows in a shuffled order, drawn outside the steps' noise stream."""
        return closing(self.feed.batches(self.size, self.seed + len(self.history), skip))

    def _next(self, minibatches: Iterator[Minibatch], batch: int) -> list[Minibatch]:
        """The minibatches of one call.

        As many as batch `batch` of an epoch has whenever it is reached, so that a resumed run calls alike.
        """
        together = self.ascent.together
        many = batch % together == 0 and batch + together <= self.n_units // self.size
        return list(islice(minibatches, together if many else 1))

    def _call(self, minibatches: list[Minibatch], batch: int) -> list[Tensor]:
        """Steps on these minibatches, `batch` being the first one's place; their bounds."""
        if len(minibatches) == 1:
            return [self._step(minibatches[0], batch)]
        data, index = side_by_side(minibatches)
        shares = [self._share_of_beta(batch + place) for place in range(len(minibatches))]
        return list(self.ascent.advance_together(index, data, shares).unbind())

    def _step(self, minibatch: Minibatch, batch: int) -> Tensor:
        data, index = minibatch
        self.ascent.warm_to(self._share_of_beta(batch))
        return self.ascent.advance(index, full=len(index) == self.size, data=data)

    def _share_of_beta(self, batch: int) -> float:
        steps = self.algorithm.warm_up * self.batches
        return min(1.0, (len(self.history) * self.batches + batch + 1) / steps) if steps else 1.0

    def _steps(self, keeper: Keeper | None, pace: Pace | None) -> bool:
        """What is left of the epoch; False as soon as a step that moved nothing is seen."""
        begun = len(self.bounds)
        with self._minibatches(begun) as minibatches:
            while len(self.bounds) < self.batches and not self.interrupt:
                batch = len(self.bounds)
                self.bounds += self._call(self._next(minibatches, batch), batch)
                if len(self.bounds) - self.looked >= LOOK and not self._sound():
                    return False
                if pace is not None and self._due(pace):
                    if not self._sound():
                        return False
                    self._keep(keeper, pace)
        return self._sound()

    def _sound(self) -> bool:
        """Whether the bounds not yet looked at are finite."""
        recent, self.looked = self.bounds[self.looked :], len(self.bounds)
        return not recent or bool(torch.stack(recent).isfinite().all())

    def _end_epoch(self, audience: Audience) -> None:
        total = float(torch.stack(self.bounds).cpu().double().sum()) * self._share
        self.history.append(total)
        self.bounds, self.looked = [], 0
        rate, held_out = self.ascent.rate, None
        self.ascent.end_epoch(total)
        if self.held is not None:
            held_out = self.held(self.ascent.state()) * self._share
            self.held_out.append(held_out)
        if self.watch is not None:
            if self.watch.add(total if held_out is None else held_out):
                self.best = {path: value.clone() for path, value in self.ascent.state().items()}
            self.status = self.watch.verdict
        if self.status is None and len(self.history) == self.algorithm.epochs:
            self.status = Status.EPOCHS_DONE
        if total > self.safe["elbo"]:
            self.safe = {"point": self.good, "epochs": len(self.history) - 1, "elbo": total}
        self.good = self._here()
        audience.tell(Epoch(len(self.history), self.algorithm.epochs, total, held_out, rate))

    def _fail(self) -> None:
        """Say what was not finite, go back to before it, and slow down or end there."""
        recovers = self.algorithm.on_nan == "recover"
        failed, minibatch = self._failing()
        where = first_non_finite(self.ascent, self.pair, picked(*minibatch), self.algorithm)
        note = f"epoch {len(self.history) + 1}, batch {failed + 1} of {self.batches}: {where}"
        moved = failed or len(self.history) > self.safe["epochs"]
        if recovers and moved and self.ascent.slowed > LEAST_RATE:
            back = self._forget_epochs()
            self.ascent.slowed /= 2
            share = round(1 / self.ascent.slowed)
            note += f"; epoch {len(self.history) + 1} was begun again at 1/{share} of the learning rate"
        else:
            self.status, back = Status.DIVERGED, self.good
        # The first failure and the last one are told; those between them say the same again and again.
        self.notes = [own for own in self.notes if not own.startswith(LATER)]
        told = any("of the learning rate" in own for own in self.notes)
        self.notes.append(LATER + note if told else note)
        self._return_to(back)

    def _failing(self) -> tuple[int, Minibatch]:
        """The epoch again, up to before the step that moves nothing: its place, and its rows."""
        planned, batch = len(self.bounds), 0
        self._return_to(self.good)
        with self._minibatches(0) as minibatches:
            while True:
                here, called = self._here(), self._next(minibatches, batch)
                bounds = self._call(called, batch)
                if not bool(torch.stack(bounds).isfinite().all()) or batch + len(called) >= planned:
                    break
                batch += len(called)
        self._return_to(here)
        for place, minibatch in enumerate(called):  # one by one, where the call took several
            before = noise_state(self.device)
            if not math.isfinite(float(self._step(minibatch, batch + place))):
                break
        set_noise_state(before, self.device)
        return batch + place, minibatch

    def _forget_epochs(self) -> Snapshot:
        """The epochs from the best one on are run again; where it began."""
        done = self.safe["epochs"]
        del self.history[done:], self.held_out[done:]
        if self.watch is not None:
            self.watch.forget(done)
        self.safe["elbo"], self.good = -math.inf, self.safe["point"]
        return self.good

    def _here(self) -> Snapshot:
        return self.ascent.point() | {"noise": noise_state(self.device)}

    def _return_to(self, point: Snapshot) -> None:
        """As it was at the beginning of an epoch."""
        self.ascent.return_to(point, self.history)
        set_noise_state(point["noise"], self.device)
        self.bounds, self.looked = [], 0

    def _due(self, pace: Pace | None) -> bool:
        return pace is not None and pace.due(len(self.history))

    def _keep(self, keeper: Keeper | None, pace: Pace | None) -> None:
        """Store a snapshot, if anyone does."""
        if keeper is None or pace is None:
            return
        problem = keeper.keep(self._snapshot())
        if problem is not None and problem not in self.notes:
            log.warning(problem)
            self.notes.append(problem)
        pace.written(len(self.history))

    def _snapshot(self) -> Snapshot:
        """All that `_restore` needs to go on from here."""
        return {
            "here": self._here(),
            "good": self.good if self.bounds else None,
            "safe": self.safe if self.algorithm.on_nan == "recover" else None,
            "buffers": self.ascent.buffers,
            "bounds": torch.stack(self.bounds) if self.bounds else None,
            "best": self.best,
            "watch": None if self.watch is None else self.watch.memory(),
            "slowed": self.ascent.slowed,
            "lowered": self.ascent.lowered(),
            "intervals": self.ascent.intervals,
            "taken": self.ascent.taken,
            "threads": torch.get_num_threads(),
            "status": None if self.status in (None, Status.INTERRUPTED) else self.status.name,
            "history": list(self.history),
            "held_out": list(self.held_out),
            "notes": list(self.notes),
        }

    def _restore(self, kept: Snapshot) -> None:
        torch.set_num_threads(kept["threads"])  # the run's own count; the caller's is put back at its end
        self.history, self.held_out, self.notes = kept["history"], kept["held_out"], kept["notes"]
        self.ascent.buffers = {path: v.to(self.device) for path, v in kept["buffers"].items()}
        self.ascent.slowed = kept["slowed"]
        self.ascent.intervals, self.ascent.taken = kept["intervals"], kept["taken"]
        self._return_to(kept["here"])
        self.good = kept["good"] or self._here()
        self.safe = kept["safe"] or {"point": self.good, "epochs": len(self.history), "elbo": -math.inf}
        if kept["bounds"] is not None:
            self.bounds = list(kept["bounds"].to(self.device).unbind())
            self.looked = len(self.bounds)
        if kept["best"] is not None:
            self.best = {path: value.to(self.device) for path, value in kept["best"].items()}
        if self.watch is not None:
            self.watch = replace(self.watch, **kept["watch"])
        self.status = None if kept["status"] is None else Status[kept["status"]]
