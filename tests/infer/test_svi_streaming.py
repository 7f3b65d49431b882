"""SVI on rows that stay in their files: every row once an epoch, the same bits again, memory that does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_gen import (
    SVI,
    Bernoulli,
    By,
    Categorical,
    Checkpoints,
    DataError,
    FitError,
    Free,
    Linear,
    Normal,
    Rows,
    Spec,
    Status,
    fit,
    resume,
)
from ppl_gen.data import stream
from ppl_gen.data.reading import read_table
from ppl_gen.data.stream import StreamedTable
from ppl_gen.infer.ascent import Ascent
from ppl_gen.infer.ascent_step import WEIGHTS
from ppl_gen.infer.feeding import Streamed
from ppl_gen.program.program import compile_spec

N, CHUNK = 1_003, 130
R = np.random.default_rng(4)
Z = R.normal(size=N)
FRAME = pd.DataFrame(
    {
        "row": np.arange(N) / N,
        "a": 2 * Z + R.normal(size=N) * 0.5,
        "b": (R.normal(size=N) < Z).astype(int),
        "w": R.integers(1, 5, N) / 2,
    }
)
FRAME.loc[R.choice(N, 60, replace=False), "a"] = np.nan
SPEC = Spec(
    model={
        "z": Normal(1, loc=0, scale=1),
        "x": Normal(loc=Linear("z"), scale=Free()),
        "y": Bernoulli(logits=Linear("z")),
    },
    columns={"x": ("row", "a"), "y": ("b",)},
)
FEW = SVI(epochs=3, batch_size=64, learning_rate=0.01)


class CutShortError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(params=["parquet", "csv"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    path = tmp_path / f"rows.{request.param}"
    if request.param == "csv":
        FRAME.to_csv(path, index=False)
    else:
        FRAME.to_parquet(path, row_group_size=200)
    return Rows(path, chunk_rows=CHUNK)


def streamed(rows: Rows, spec: Spec = SPEC, weights: str | None = "w") -> StreamedTable:
    table = read_table(rows, spec, weights=weights)
    assert isinstance(table, StreamedTable)
    return table


def feed_of(rows: Rows) -> Streamed:
    table = streamed(rows)
    return Streamed(compile_spec(SPEC, table.schema), table)


def numbers(batches: list) -> np.ndarray:
    """Which rows minibatches hold."""
    found = torch.cat([data["x"][index, 0] for data, index in batches]).double().numpy()
    return np.rint(found * N).astype(int)


def test_an_epoch_meets_every_row_once_with_its_cells_its_weight_and_its_holes(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POOL_BYTES", 12_000)  # several pools, several chunks in each
    monkeypatch.setattr("ppl_gen.infer.feeding.PIECE_BYTES", 5_000)
    feed = feed_of(rows)
    batches = list(feed.batches(64, seed=7))
    assert [len(index) for _, index in batches] == [64] * 15 + [43]
    order = numbers(batches)
    assert sorted(order) == list(range(N))
    assert (order != np.arange(N)).mean() > 0.9
    whole = {key: torch.cat([data[key][index] for data, index in batches]).numpy() for key in batches[0][0]}
    own = FRAME.iloc[order]
    np.testing.assert_array_equal(whole["y"][:, 0], own["b"])
    np.testing.assert_array_equal(whole["x.seen"][:, 1] == 0, own["a"].isna())
    np.testing.assert_allclose(whole["x"][:, 1], own["a"].fillna(0), rtol=1e-6)
    np.testing.assert_allclose(whole[WEIGHTS], own["w"] / FRAME["w"].mean(), rtol=1e-6)
    assert (numbers(list(feed.batches(64, seed=8))) != order).mean() > 0.9
    for skip in (1, 5, 15):  # whatever was read before: the same rows follow
        np.testing.assert_array_equal(numbers(list(feed.batches(64, 7, skip))), order[64 * skip :])


def test_minibatches_come_to_the_device_of_the_model(rows: Rows) -> None:
    table = streamed(rows)
    elsewhere = Streamed(compile_spec(SPEC, table.schema).to(device="meta"), table)
    batches = list(elsewhere.batches(64, seed=7))
    here = list(feed_of(rows).batches(64, seed=7))
    for (data, index), (own, at) in zip(batches, here, strict=True):
        assert {column.device.type for column in (*data.values(), index)} == {"meta"}
        assert {name: column[index].shape for name, column in data.items()} == {
            name: column[at].shape for name, column in own.items()
        }


def test_held_out_rows_are_those_of_the_split_whatever_the_chunks_and_never_learned_from(rows: Rows) -> None:
    learned, held = feed_of(rows).parted(0.2, seed=3)
    kept = numbers(list(learned.batches(50, seed=0)))
    out = np.rint(held["x"][:, 0].double().numpy() * N).astype(int)
    assert sorted([*kept, *out]) == list(range(N))
    assert abs(len(out) - 0.2 * N) < 4 * np.sqrt(0.16 * N)  # four standard deviations of the count
    other = feed_of(Rows(rows.paths, chunk_rows=37)).parted(0.2, seed=3)[1]
    torch.testing.assert_close(other, held, rtol=0, atol=0)
    with pytest.raises(FitError, match="0 held out"):
        feed_of(rows).parted(1e-9, seed=3)


def test_a_streamed_fit_says_what_a_fit_in_memory_does(rows: Rows) -> None:
    # The same rows in another order: seeds of runs in memory lie up to 1 nat apart, of 1245 units; without the
    # weights, or with a sum over the sample alone, it would be hundreds.
    algorithm = SVI(epochs=30, batch_size=64, learning_rate=0.1, schedule="exponential")
    memory, files = fit(SPEC, FRAME, algorithm, weights="w"), fit(SPEC, rows, algorithm, weights="w")
    assert files.status is Status.EPOCHS_DONE
    assert files.n_units == memory.n_units == FRAME["w"].sum()
    assert abs(files.log_likelihood - memory.log_likelihood) < 4
    assert abs(files.elbo - memory.elbo) < 4
    scale, other = files.parameters["x"]["scale"], memory.parameters["x"]["scale"]
    np.testing.assert_allclose(scale, other, rtol=0.05)
    assert files.certificate.ok, str(files.certificate)


def test_a_fit_says_when_memory_holds_fewer_held_out_rows_than_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", R.normal(size=(N, 2)))
    rows, spec = Rows(tmp_path / "x.npy"), Spec(model={"x": Normal(2)})
    algorithm = SVI(epochs=1, validation=0.3)
    assert not any("held out" in note for note in fit(spec, rows, algorithm).run.notes)
    monkeypatch.setattr("ppl_gen.data.stream_parts.HELD_BYTES", 400)  # 50 rows of float32, or 25 of float64
    (note,) = [note for note in fit(spec, rows, algorithm).run.notes if "held out" in note]
    assert int(note.split()[0]) < 100
    assert note.endswith("rows are held out: validation=0.3 of them would not fit into memory")


def test_discrete_latents_are_summed_out_over_all_rows_of_the_file(tmp_path: Path) -> None:
    x = np.concatenate([R.normal(6, 1, (400, 1)), R.normal(0, 1, (200, 1))])
    np.save(tmp_path / "x.npy", x)
    spec = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=By("z"))})
    found = fit(
        spec, Rows(tmp_path / "x.npy", chunk_rows=90), SVI(epochs=20, batch_size=50, learning_rate=0.02)
    )
    np.testing.assert_allclose(found.parameters["z"]["probs"], [2 / 3, 1 / 3], atol=0.03)
    assert found.log_likelihood == pytest.approx(found.score_samples(x).sum(), rel=1e-9)
    assert found.certificate.ok, str(found.certificate)


def test_a_run_cut_short_in_an_epoch_goes_on_to_the_very_same_bits(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = SVI(epochs=3, batch_size=64, learning_rate=0.01, validation=0.1)
    whole = fit(SPEC, rows, algorithm, weights="w")
    again = fit(SPEC, rows, algorithm, weights="w", checkpoint=Checkpoints(tmp_path / "whole"))
    advance, steps = Ascent.advance, []

    def cut(self: Ascent, *args: object, **rest: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 20:  # the sixth of the second epoch's fifteen
            raise CutShortError
        return advance(self, *args, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Ascent, "advance", cut)
    often = Checkpoints(tmp_path / "run", every_minutes=1e-9)
    with pytest.raises(CutShortError):
        fit(SPEC, rows, algorithm, weights="w", checkpoint=often)
    monkeypatch.setattr(Ascent, "advance", advance)
    resumed = resume(tmp_path / "run")
    for found in (again, resumed):
        np.testing.assert_array_equal(found.history, whole.history)
        np.testing.assert_array_equal(found.run.held_out, whole.run.held_out)
        for path, value in whole.run.state.items():
            assert torch.equal(value, found.run.state[path]), path
        assert (found.log_likelihood, found.elbo) == (whole.log_likelihood, whole.elbo)


def test_a_streamed_run_is_only_gone_on_with_on_the_rows_and_the_pieces_of_then(
    rows: Rows, tmp_path: Path
) -> None:
    fit(SPEC, rows, FEW, weights="w", checkpoint=Checkpoints(tmp_path / "run"))
    with pytest.raises(DataError, match="other pieces"):
        resume(tmp_path / "run", Rows(rows.paths, chunk_rows=CHUNK + 1))
    with pytest.raises(FitError, match="read its rows from files"):
        resume(tmp_path / "run", FRAME)
    assert resume(tmp_path / "run", rows.paths).status is Status.EPOCHS_DONE
    path = Path(str(rows.paths))
    changed = FRAME.assign(a=FRAME["a"] + 1)
    changed.to_csv(path, index=False) if path.suffix == ".csv" else changed.to_parquet(
        path, row_group_size=200
    )
    with pytest.raises(DataError, match="values of 'x' have changed"):
        resume(tmp_path / "run")


def test_rows_that_vanish_while_a_run_is_under_way_end_it_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    x = R.normal(size=(400, 2))
    np.save(path, x)
    spec = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})

    def shrink(done: int, planned: int, elbo: float) -> None:
        np.save(path, x[:300])

    with pytest.raises(DataError, match="lost rows while they were read: 400 before, 300 now"):
        fit(spec, Rows(path), SVI(epochs=3, batch_size=50), progress=shrink)


def test_an_epoch_whose_steps_are_not_finite_is_found_and_begun_again(tmp_path: Path) -> None:
    x = R.normal(size=(400, 2))
    np.save(tmp_path / "x.npy", x)
    spec = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})
    wild = SVI(epochs=6, batch_size=50, learning_rate=300.0, on_nan="recover")
    found = fit(spec, Rows(tmp_path / "x.npy", chunk_rows=60), wild)
    assert any("was begun again at 1/2 of the learning rate" in note for note in found.run.notes), (
        found.run.notes
    )


MEASURED = """
import resource, sys
from ppl_gen import MLP, SVI, Linear, Normal, Rows, Spec, fit
spec = Spec(
    model={"z": Normal(2, loc=0, scale=1), "x": Normal(loc=MLP("z", [8]), scale=1)},
    guide={"z": Normal(2, loc=Linear("x"), scale=Linear("x"))},
)
for path in sys.argv[1:]:
    found = fit(spec, Rows(path), SVI(epochs=1, batch_size=4096, lowering="traced"), checkpoint=None)
    print(found.n_units, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_the_memory_a_streamed_run_takes_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"x{j}" for j in range(16)]
    schema = pa.schema([(name, pa.float32()) for name in names])
    group = pa.table([R.normal(size=250_000).astype(np.float32) for _ in names], schema=schema)
    groups = {tmp_path / "small.parquet": 4, tmp_path / "large.parquet": 8}
    for path, count in groups.items():
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for _ in range(count):
                writer.write_table(group)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, groups)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    small, large = (line.split() for line in done.stdout.splitlines())
    assert [int(small[0]), int(large[0])] == [1_000_000, 2_000_000]
    # A million rows more are 128 MB as the float64 of a table and 64 MB as the float32 of a run; a few pools of
    # 48 MiB are mixed at a time, and not all of them have been in use before.
    assert float(large[1]) - float(small[1]) < 96, (small, large)
