"""Runs that end well: noise is taken for no rise, held-out rows teach nothing, what is not finite is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Normal
from ppl_gen.declare.phrasebook import vae
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Linear
from ppl_gen.errors import FitError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import SVI, described
from ppl_gen.infer.callbacks import Callback, Epoch
from ppl_gen.infer.held_out import split
from ppl_gen.infer.patience import Change, Watch
from ppl_gen.infer.status import Status
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import Program, compile_spec

R = np.random.default_rng(3)
X = R.normal(size=(80, 4)) @ R.normal(size=(4, 4))
FACTORS = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})


def stopped_after(values: np.ndarray, **options: object) -> tuple[int, Status | None]:
    watch = Watch(SVI(**{"patience": 5, **options}), units=1000)
    for value in values:
        watch.add(float(value))
        if watch.verdict is not None:
            break
    return len(watch.values), watch.verdict


def test_the_standard_error_is_that_of_welch():
    values = R.normal(size=24)
    change = Change.of(list(values), 12)
    t, _ = stats.ttest_ind(values[12:], values[:12], equal_var=False)
    assert (change.after - change.before) / change.error == pytest.approx(t, rel=1e-12)


def test_a_noisy_climb_is_not_stopped_and_a_noisy_plateau_is():
    epochs = np.arange(300)
    climb = [stopped_after(R.normal(size=300) + 0.3 * epochs)[1] for _ in range(40)]
    assert climb.count(None) == 40  # a rise of 3 a window, 6.7 standard errors of the difference
    ends = [stopped_after(R.normal(size=300)) for _ in range(40)]
    assert all(status is Status.LEVELLED_OFF for _, status in ends)
    assert max(epochs for epochs, _ in ends) < 100


def test_the_knee_of_a_noisy_curve_is_found_near_where_it_is():
    ends = []
    for _ in range(40):
        curve = -100 * np.exp(-np.arange(400) / 20) + 0.5 * R.normal(size=400)
        ends.append(stopped_after(curve)[0])
    # At epoch 20 ln(100/0.5) = 106 what is left is one standard deviation of the noise.
    assert 80 < np.median(ends) < 160


def test_an_exact_curve_stops_only_where_its_rise_is_nothing():
    left = 1e4 * np.exp(-np.arange(2000) / 20)
    epochs, status = stopped_after(-left)
    assert status is Status.LEVELLED_OFF
    assert left[epochs - 1] < 1e-3  # of 1e4 nats; a thousand rows' tolerance is 1e-3


def test_a_falling_held_out_elbo_is_called_by_its_name():
    curve = -((np.arange(200) - 60.0) ** 2) / 100 + 0.1 * R.normal(size=200)
    epochs, status = stopped_after(curve, validation=0.2)
    assert status is Status.OVERFITTING
    assert 60 < epochs < 100
    assert not status.converged
    assert status.usable


def test_epochs_of_warm_up_and_values_that_are_not_finite_stop_nothing():
    falling = -np.arange(20.0)
    assert stopped_after(falling, warm_up=20, window=3)[1] is None
    assert stopped_after(np.full(40, math.nan))[1] is None


def test_a_best_epoch_that_was_run_again_since_is_told_as_that():
    watch = Watch(SVI(validation=0.2), units=10)
    kept = [watch.add(value) for value in (-9.0, -5.0, -6.0)]
    watch.forget(1)
    kept += [watch.add(value) for value in (-7.0, -8.0)]
    assert kept == [True, True, False, False, False]
    [note] = watch.notes(Status.EPOCHS_DONE)
    assert note.endswith("of epoch 2, the best of the held-out rows, before it was begun again")
    again = Watch(SVI(validation=0.2), units=10, **watch.memory())
    assert again.notes(Status.EPOCHS_DONE) == [note]
    assert again.add(-4.0)
    assert not again.notes(Status.EPOCHS_DONE)


def test_the_split_is_of_all_rows_once_and_of_the_seed():
    learned, held = split(101, 0.25, seed=4)
    assert torch.equal(torch.cat([learned, held]).sort().values, torch.arange(101))
    assert len(held) == 25
    assert torch.equal(held, split(101, 0.25, seed=4)[1])
    assert not torch.equal(held, split(101, 0.25, seed=5)[1])
    with pytest.raises(FitError, match=r"validation=0\.001 of 101 rows leaves 0 held out"):
        split(101, 0.001, seed=0)


def test_held_out_rows_teach_nothing():
    # Outliers among the held-out rows: whoever learned from them would have their mean.
    _, held = split(80, 0.25, seed=0)
    far = X.copy()
    far[held.numpy()] += 50
    algorithm = SVI(epochs=3, batch_size=20, validation=0.25, lowering="eager")
    spec = Spec(
        model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z", bias=0), scale=1)},
        guide={"z": Normal(1)},  # which reads no columns, whose means are those of all rows
    )
    fits = [
        run_svi(compile_spec(spec, {"x": X}), read_table({"x": own}, spec), algorithm) for own in (X, far)
    ]
    assert fits[0].history == fits[1].history
    assert fits[0].held_out[0] > fits[1].held_out[0] + 1e4


def test_the_held_out_elbo_is_that_of_the_parameters_and_the_best_of_them_are_kept():
    seen: list[Epoch] = []

    class Told(Callback):
        def on_epoch(self, epoch: Epoch) -> None:
            seen.append(epoch)

    x = R.normal(size=(40, 6))
    algorithm = SVI(epochs=120, batch_size=30, learning_rate=0.02, validation=0.25, patience=6, window=5)
    result = fit(vae(2, (32,)), x, algorithm, callbacks=[Told()])  # 30 rows of noise: it can only overfit
    held_out = np.array(result.run.held_out)
    assert result.status is Status.OVERFITTING
    assert len(held_out) == len(result.history) == len(seen) < 120
    assert [e.held_out for e in seen] == list(held_out)
    best = int(held_out.argmax()) + 1
    assert best < len(held_out)
    assert any(
        f"the parameters are those of epoch {best}, the best of the held-out rows" in n
        for n in result.run.notes
    )
    # The same run, cut at the best epoch, ends with these parameters.
    short = fit(vae(2, (32,)), x, SVI(epochs=best, batch_size=30, learning_rate=0.02, validation=0.25))
    assert all(torch.equal(value, result.run.state[path]) for path, value in short.run.state.items())


def test_a_fit_that_levels_off_says_so_and_counts_as_converged():
    result = fit(FACTORS, X, SVI(epochs=400, batch_size=80, learning_rate=0.05, patience=8, particles=4))
    assert result.status is Status.LEVELLED_OFF
    assert result.converged
    assert len(result.history) < 400
    assert any(
        f"after {len(result.history)} epochs of 400 the ELBO has the mean" in n for n in result.run.notes
    )


def test_without_the_options_nothing_is_watched_and_all_epochs_are_run():
    table = read_table({"x": X}, FACTORS)
    program = compile_spec(FACTORS, table.schema)
    done = run_svi(program, table, SVI(epochs=5, lowering="eager"))
    assert (done.status, len(done.history), done.held_out, done.notes) == (Status.EPOCHS_DONE, 5, (), ())


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 0},
        {"patience": 1.5},
        {"window": 1},
        {"validation": 1},
        {"validation": -0.1},
        {"on_nan": "go"},
    ],
    ids=str,
)
def test_an_option_outside_its_range_is_refused_by_name(options):
    with pytest.raises(FitError, match=next(iter(options))):
        SVI(**options)


def test_the_written_form_of_an_algorithm_makes_the_same_one():
    algorithm = SVI(patience=3, validation=0.1, on_nan="recover", clip_norm=None, schedule="cosine")
    written = described(algorithm)
    written.pop("name")
    assert SVI(**written) == algorithm


def diverging(**options: object) -> tuple[Program, object]:
    table = read_table({"x": X}, FACTORS)
    program = compile_spec(FACTORS, table.schema, dtype=torch.float32)
    return program, run_svi(program, table, SVI(epochs=6, batch_size=16, lowering="eager", **options))


def test_a_non_finite_step_is_named_with_its_site_and_what_went_into_it():
    _, done = diverging(learning_rate=1e20)
    assert done.status is Status.DIVERGED
    assert len(done.notes) == 1
    note = done.notes[0]
    assert note.startswith("epoch 1, batch 2 of 5: ")
    assert "'z'" in note
    assert "its loc from" in note
    assert "x from" in note
    assert all(torch.isfinite(value).all() for value in done.state.values())


def test_recovering_goes_back_slows_down_and_ends_finite():
    _, stopped = diverging(learning_rate=4.0, optimizer="sgd", particles=2)
    assert stopped.status is Status.DIVERGED
    _, done = diverging(learning_rate=4.0, optimizer="sgd", particles=2, on_nan="recover")
    assert done.status is Status.EPOCHS_DONE
    assert len(done.history) == 6
    assert np.isfinite(done.history).all()
    assert any("was begun again at 1/" in note for note in done.notes)
    assert len(done.notes) <= 2


def test_recovering_ends_after_ten_halvings():
    _, done = diverging(learning_rate=1e30, on_nan="recover")
    assert done.status is Status.DIVERGED
    assert "1/2 of the learning rate" in done.notes[0]
    assert done.notes[-1].startswith("at last in epoch 1")
    assert all(torch.isfinite(value).all() for value in done.state.values())


def test_a_gradient_that_alone_is_not_finite_is_found(monkeypatch):
    # A finite bound with an infinite slope: |x|^½ at 0, added to the log-prior, which every row carries a share of.
    table = read_table({"x": X}, FACTORS)
    program = compile_spec(FACTORS.replace("x.scale", "Free(prior=HalfNormal(scale=1))"), table.schema)
    bias = next(path for path, _ in program.named_parameters() if path.endswith("bias"))
    real = Program.log_prior

    def steep(self: Program) -> torch.Tensor:
        own = self.generative.layers["x:loc"].bias
        return real(self) + (own - own.detach()).abs().sqrt().sum()

    monkeypatch.setattr(Program, "log_prior", steep)
    done = run_svi(program, table, SVI(epochs=2, batch_size=16, lowering="eager"))
    assert done.status is Status.DIVERGED
    assert f"the gradient of {bias!r} is not" in done.notes[0]
