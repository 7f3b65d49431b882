"""Whatever is wrong with a declaration, the data, a query or a saved fit is said in one line, with its place."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, Normal, Poisson
from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class
from ppl_gen.declare.phrasebook import vae as vae_of
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear, Net
from ppl_gen.errors import DataError, FitError, SpecError
from ppl_gen.evaluation import evaluate
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.checkpoints import Checkpoints
from ppl_gen.results.fit import Fit
from ppl_gen.results.storage import load
from ppl_gen.resuming import resume

X = np.random.default_rng(0).normal(size=(30, 2))
MIXTURE = gaussian_mixture(2)
COUNTS = Spec(model={"z": Categorical(2), "x": Poisson(rate=By("z"))})
COINS = Spec(model={"z": Categorical(2), "x": Bernoulli(probs=By("z"))})
REGRESSION = Spec(model={"u": Input(2), "y": Normal(1, loc=Linear("u"))})
VAE = vae_of(1, (4,))
TWO_CLASSES = Spec(model={"z": Categorical(2), "x": Normal(2, loc=By("z"))})
TWO_LEAVES = Spec(model={"z": Categorical(2), "x": Normal(2, loc=By("z")), "y": Normal(1, loc=By("z"))})


def holding(value: float, rows: int = 9) -> np.ndarray:
    array = np.zeros((rows, 2)) if value in (7, -1, 0.5) else np.arange(2.0 * rows).reshape(rows, 2)
    array[4, 1] = value
    array[6, 1] = value
    return array


def model(text: str) -> Callable[[], Spec]:
    return lambda: read_spec("model:\n" + text)


def flow(text: str) -> Callable[[], Spec]:
    return lambda: read_spec(
        f"model:\n  z: Normal(8, loc=0, scale=1)\n  x: Normal(2, loc=Linear(z))\nguide:\n  z: {text}\n"
    )


SHORT_GUIDE = """
model:
  z: Normal(1, loc=0, scale=1)
  w: Normal(1, loc=0, scale=1)
  x: Normal(2, loc=Linear([z, w]))
guide:
  z: Normal(1, loc=Linear(x))
"""
BILLION_LAUGHS = "a: &a [x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nmodel: *c\n"

WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    # Data.
    "NaN in an Input": (
        lambda: fit(REGRESSION, {"u": holding(np.nan), "y": np.arange(9.0)}),
        DataError,
        "column 'u[1]' has 2 missing values (NaN or blank), the first in row 4 (counting from 0); "
        "an Input is given and not modelled",
    ),
    "a column of NaN": (
        lambda: fit(MIXTURE, np.column_stack([X[:, 0], np.full(30, np.nan)])),
        DataError,
        "column 'x[1]' has no value in any row: leave it out",
    ),
    "infinity": (
        lambda: fit(MIXTURE, holding(np.inf)),
        DataError,
        "column 'x[1]' has 2 infinite values, the first in row 4",
    ),
    "fewer rows than classes": (
        lambda: fit(gaussian_mixture(5), X[:3]),
        DataError,
        "'z' has 5 classes and the data 3 rows",
    ),
    "a 7 in a Bernoulli": (
        lambda: fit(COINS, {"x": holding(7)}),
        DataError,
        "column 'x[1]' holds 7 in row 4 (counting from 0), where Bernoulli takes 0 and 1; 2 such cells",
    ),
    "a negative count": (
        lambda: fit(COUNTS, {"x": holding(-1)}),
        DataError,
        "column 'x[1]' holds -1 in row 4 (counting from 0), where counts are 0, 1, 2, ...",
    ),
    "a fractional count": (
        lambda: fit(COUNTS, {"x": holding(0.5)}),
        DataError,
        "column 'x[1]' holds 0.5 in row 4 (counting from 0), where counts are whole numbers",
    ),
    "text among numbers": (
        lambda: fit(MIXTURE, {"x": np.array([["a", "b"]])}),
        DataError,
        "column 'x[0]' holds text, 'a', in row 0 (counting from 0), where numbers are needed",
    ),
    "complex": (lambda: fit(MIXTURE, X + 1j), DataError, "'x' holds complex numbers"),
    "ragged": (
        lambda: fit(MIXTURE, {"x": [[1, 2], [3]]}),
        DataError,
        "'x' cannot be read as rows and columns: row 0 has 2 cells and row 1 has 1",
    ),
    "empty": (lambda: fit(MIXTURE, X[:0]), DataError, "'x' is empty: its shape is (0, 2)"),
    "one-dimensional": (
        lambda: fit(MIXTURE, X[:, 0]),
        DataError,
        "one array for 'x' needs two dimensions, rows and columns",
    ),
    "nothing": (lambda: fit(MIXTURE, None), DataError, "no data are given"),
    "a path without a file": (lambda: fit(MIXTURE, "nofile.csv"), DataError, "nofile.csv: no such file"),
    "a leaf that the data lack": (
        lambda: fit(TWO_LEAVES, {"x": X}),
        DataError,
        "the data lack the leaf 'y'; they have x",
    ),
    # Declarations.
    "an unknown parent": (
        model("  z: Categorical(2)\n  x: Normal(2, loc=By(c))\n"),
        SpecError,
        "<text>:3:23: 'x' refers to 'c', which is not declared above it; declared so far: z",
    ),
    "a cycle": (
        model("  a: Normal(1, loc=Linear(b))\n  b: Normal(1, loc=Linear(a))\n"),
        SpecError,
        "<text>:2:27: 'a' refers to 'b' in a cycle: a -> b -> a",
    ),
    "a key written twice": (
        model("  x: Normal(2)\n  y: Normal(1)\n  x: Normal(3)\n"),
        SpecError,
        "<text>:4:3: 'x' is written twice, in line 2 and in line 4",
    ),
    "a latent the guide lacks": (
        lambda: read_spec(SHORT_GUIDE),
        SpecError,
        "the guide lacks 'w', which is a continuous latent; it must name: z, w",
    ),
    "an unknown node": (
        model("  x: Norml(2)\n"),
        SpecError,
        "'Norml' is not a word here; did you mean 'Normal'?",
    ),
    "an unknown term": (
        model("  x: Normal(2, loc=Liner(z))\n"),
        SpecError,
        "'Liner' is not a word here; did you mean 'Linear'?",
    ),
    "an unknown option": (
        model("  x: Normal(2, scal=1)\n"),
        SpecError,
        "<text>:2:16: Normal has no option 'scal'; did you mean 'scale'? its options: dim, loc, scale",
    ),
    "an unknown section": (
        lambda: read_spec("modle:\n  x: Normal(2)\n"),
        SpecError,
        "<text>:1:1: 'modle' is no section; did you mean 'model'?",
    ),
    "an unknown shipped model": (
        lambda: fit("gausian_mixture", X),
        SpecError,
        "'gausian_mixture' is no file and no shipped model; did you mean 'gaussian_mixture'?",
    ),
    "a word of a later version": (
        model("  x: Normal(2, loc=Lag(x))\n"),
        SpecError,
        "not supported yet",
    ),
    "a latent count": (
        lambda: fit(Spec(model={"n": Poisson(1, rate=2), "x": Normal(loc=Linear("n"))}), X),
        SpecError,
        "'n' is a latent Poisson, whose values cannot be summed over",
    ),
    "a YAML tag": (
        model("  x: !!python/object/apply:os.system [ls]\n"),
        SpecError,
        "<text>:2:6: a tag (!) has no meaning here",
    ),
    "an alias": (
        lambda: read_spec("model: &a\n  x: *a\n"),
        SpecError,
        "<text>:1:8: an anchor (&) has no meaning here",
    ),
    "aliases without end": (
        lambda: read_spec(BILLION_LAUGHS),
        SpecError,
        "an anchor (&) has no meaning here",
    ),
    "an attribute": (
        model("  x: Normal(2, loc=os.system)\n"),
        SpecError,
        "<text>:2:20: a dot is not in the notation",
    ),
    "a call of something else": (
        model("  x: Normal(2, loc=__import__('os'))\n"),
        SpecError,
        "<text>:2:20: '__import__' is not a word here",
    ),
    "a function": (
        model("  x: 'Normal(2, loc=(lambda: 1)())'\n"),
        SpecError,
        "only a word can stand before a parenthesis",
    ),
    "a comprehension": (
        model("  x: Normal(2, loc=[i for i in z])\n"),
        SpecError,
        "<text>:2:20: a comprehension is not in the notation",
    ),
    "a convolution without an image": (
        model("  z: Normal(2, loc=0, scale=1)\n  x: Normal(784, loc=Conv(z, [8]))\n"),
        SpecError,
        "<text>:3:22: x.loc: Conv(z, [8]) has an image at neither end; write the size of one as a list, as "
        "Normal([1, 28, 28], ...)",
    ),
    "an image too small for its convolutions": (
        model("  z: Normal(2, loc=0, scale=1)\n  x: Normal([6, 28], loc=Conv(z, [8, 8, 8]))\n"),
        SpecError,
        "x.loc: Conv(z, [8, 8, 8]) has 3 layers, and an image of 6 × 28, 3 × 14, 1 × 7 has no window of 4 × 4 left "
        "for layer 3 (padding 1): write fewer channels, or a smaller kernel or stride",
    ),
    "an image and something beside it": (
        model("  a: Normal([6, 6], loc=0, scale=1)\n  b: Normal(1)\n  x: Normal(2, loc=Conv([a, b], [8]))\n"),
        SpecError,
        "x.loc: Conv([a, b], [8]) takes one image and nothing beside it; write h: Conv(a, ...) as a value",
    ),
    "from an image to an image": (
        model("  a: Normal([6, 6], loc=0, scale=1)\n  x: Normal([6, 6], loc=Conv(a, [8]))\n"),
        SpecError,
        "x.loc: Conv(a, [8]) leads from an image to an image; write h: Conv(a, ...) as a value of its own",
    ),
    "no channels": (
        model("  z: Normal(2, loc=0, scale=1)\n  x: Normal([6, 6], loc=Conv(z, []))\n"),
        SpecError,
        "Conv's channels must be a list of at least one number of channels, as in [32, 64], got []",
    ),
    "padding beyond the kernel": (
        model("  z: Normal(2, loc=0, scale=1)\n  x: Normal([6, 6], loc=Conv(z, [8], padding=4))\n"),
        SpecError,
        "Conv's padding must be less than its kernel, got padding=4, kernel=4",
    ),
    "an image of another shape": (
        lambda: fit(
            Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal([3, 4, 4], loc=Linear("z"))}),
            np.zeros((9, 4, 4, 3)),
        ),
        DataError,
        "'x' is declared with dim=[3, 4, 4] and its rows have shape [4, 4, 3]",
    ),
    "a flow in the model": (
        model("  z: Flow(2)\n  x: Normal(2, loc=Linear(z))\n"),
        SpecError,
        "<text>:2:6: 'z' is Flow(2), and a Flow stands in a guide alone, in the place of a posterior; write it "
        "under guide:",
    ),
    "a flow for a category": (
        lambda: read_spec("model:\n  z: Categorical(2)\n  x: Normal(2, loc=By(z))\nguide:\n  z: Flow(2)\n"),
        SpecError,
        "'z' is Flow(2) in the guide, but Categorical(2) in the model",
    ),
    "a flow of one dimension": (
        flow("Flow(1)"),
        SpecError,
        'Flow of kind "affine_autoregressive" needs two dimensions or more; of one, write Normal or kind="planar"',
    ),
    "an unknown kind of flow": (
        flow('Flow(2, kind="spline")'),
        SpecError,
        "Flow's kind must be one of affine_autoregressive, affine_coupling, planar, got 'spline'",
    ),
    "too few hidden units for a flow": (
        flow("Flow(8, hidden=[4])"),
        SpecError,
        "Flow's hidden layers must have at least as many units as it has dimensions, 8, got [4]",
    ),
    "a context that depends on nothing": (
        flow("Flow(2, context=0)"),
        SpecError,
        "Flow's context must be a function of something, as Linear(h), or left out, got 0",
    ),
    "a network of one's own in a text": (
        model('  z: Normal(2, loc=0, scale=1)\n  x: Normal(2, loc=Net("os:system", z))\n'),
        SpecError,
        "<text>:3:20: Net names code to be run ('os:system'), which is read from a text only where that is "
        "trusted: trust=True, or --trust",
    ),
    "a network that is no place": (
        lambda: Net("os.system", "z"),
        SpecError,
        "Net's module must be an nn.Module, a function that makes one, or the place of such a function, as "
        "\"package.module:name\", got 'os.system'",
    ),
    # Algorithms.
    "an algorithm by name": (
        lambda: fit(MIXTURE, X, "EM"),
        FitError,
        "algorithm must be EM(…), StepwiseEM(…) or SVI(…), not 'EM'",
    ),
    "EM of a continuous latent": (
        lambda: fit("vae", X, EM()),
        FitError,
        "EM cannot fit this model: 'z' is a continuous latent",
    ),
    # SVI's options.
    "an unknown optimizer": (
        lambda: SVI(optimizer="adamm"),
        FitError,
        "SVI: optimizer must be one of adadelta, adagrad, adam, adamax, adamw, nadam, radam, rmsprop, rprop, sgd, "
        "not 'adamm'",
    ),
    "an optimizer that is a number": (
        lambda: SVI(optimizer=3),
        FitError,
        "SVI: optimizer must be a name or a function, not 3",
    ),
    "an unknown schedule": (
        lambda: SVI(schedule="cosin"),
        FitError,
        "SVI: schedule must be one of cosine, linear, exponential, not 'cosin'",
    ),
    "a schedule that makes nothing": (
        lambda: fit(VAE, X, SVI(epochs=1, schedule=lambda own: None)),
        FitError,
        "SVI: the schedule's function gives None, which is no scheduler; take one of cosine, linear, exponential",
    ),
    "a schedule without an argument": (
        lambda: fit(VAE, X, SVI(epochs=1, schedule=lambda: 3)),
        FitError,
        "SVI: the schedule's function fails on the optimiser: ",
    ),
    "a schedule for fewer epochs": (
        lambda: fit(VAE, X, SVI(epochs=3, schedule=lambda own: OneCycleLR(own, max_lr=0.1, total_steps=2))),
        FitError,
        "SVI: OneCycleLR fails on its step, which is one an epoch: Tried to step 3 times",
    ),
    "an unknown objective": (
        lambda: SVI(objective="iwea"),
        FitError,
        "SVI: objective must be one of elbo, iwae, not 'iwea'",
    ),
    "an unknown kl": (
        lambda: SVI(kl="exact"),
        FitError,
        "SVI: kl must be one of sampled, analytic, not 'exact'",
    ),
    "IWAE of one draw": (
        lambda: SVI(objective="iwae"),
        FitError,
        "SVI: objective='iwae' wants particles of 2 or more; with 1 it is the ELBO",
    ),
    "IWAE with a beta": (
        lambda: SVI(objective="iwae", particles=4, beta=2.0),
        FitError,
        "SVI: beta=2.0 goes with objective='elbo' only",
    ),
    "a lowering that is none": (
        lambda: SVI(lowering="jit"),
        FitError,
        "SVI: lowering must be one of auto, eager, traced, compiled, captured, not 'jit'",
    ),
    "a CUDA graph on the CPU": (
        lambda: fit(VAE, X, SVI(lowering="captured")),
        FitError,
        "SVI: lowering='captured' is for CUDA devices, and the model is on cpu; choose auto, eager, traced, "
        "compiled",
    ),
    "no step a call": (
        lambda: SVI(steps_per_execution=0),
        FitError,
        "SVI: steps_per_execution must be a whole number from 1, not 0",
    ),
    "steps a call by name": (
        lambda: SVI(steps_per_execution="auto"),  # type: ignore[arg-type]
        FitError,
        "SVI: steps_per_execution must be a whole number from 1, not 'auto'",
    ),
    "several steps a call by another optimiser": (
        lambda: SVI(steps_per_execution=4, optimizer="sgd"),
        FitError,
        "SVI: steps_per_execution=4 goes with optimizer='adam', whose step is in the graph, and lowering='auto', "
        "'compiled' or 'captured'",
    ),
    "several steps a call of a traced step": (
        lambda: SVI(steps_per_execution=4, lowering="traced"),
        FitError,
        "SVI: steps_per_execution=4 goes with optimizer='adam', whose step is in the graph, and lowering='auto', "
        "'compiled' or 'captured'",
    ),
    "a negative beta": (lambda: SVI(beta=-1), FitError, "SVI: beta must be a number from 0, not -1"),
    "half an epoch of warm-up": (
        lambda: SVI(warm_up=1.5),  # type: ignore[arg-type]
        FitError,
        "SVI: warm_up must be a whole number from 0, not 1.5",
    ),
    "free bits as text": (
        lambda: SVI(free_bits="x"),  # type: ignore[arg-type]
        FitError,
        "SVI: free_bits must be a number from 0, not 'x'",
    ),
    "a gradient clipped to nothing": (
        lambda: SVI(clip_norm=0),
        FitError,
        "SVI: clip_norm must be a positive number, not 0",
    ),
    "a negative decay": (
        lambda: SVI(weight_decay=-0.1),
        FitError,
        "SVI: weight_decay must be a number from 0, not -0.1",
    ),
    "all rows held out": (
        lambda: SVI(validation=1.0),
        FitError,
        "SVI: validation is a share of the rows, from 0 to below 1, not 1.0",
    ),
    "no row held out": (
        lambda: fit(VAE, X, SVI(validation=0.001)),
        FitError,
        "SVI: validation=0.001 of 30 rows leaves 0 held out and 30 to learn from",
    ),
    "no patience": (
        lambda: SVI(patience=0),
        FitError,
        "SVI: patience must be a whole number from 1, not 0",
    ),
    "an unknown answer to NaN": (
        lambda: SVI(on_nan="skip"),
        FitError,
        "SVI: on_nan must be one of stop, recover, not 'skip'",
    ),
    "no epochs": (lambda: SVI(epochs=0), FitError, "SVI: epochs must be a whole number from 1, not 0"),
    # Checkpoints, callbacks, evaluate, resume.
    "a checkpoint that is a path": (
        lambda: fit(VAE, X, SVI(), checkpoint="runs/x"),  # type: ignore[arg-type]
        FitError,
        "checkpoint must be Checkpoints(…), not 'runs/x'",
    ),
    "a checkpoint's path that is none": (
        lambda: Checkpoints(5),  # type: ignore[arg-type]
        FitError,
        "Checkpoints: path must name a folder, not 5",
    ),
    "a checkpoint's data as an array": (
        lambda: Checkpoints("x", data=7),  # type: ignore[arg-type]
        FitError,
        "Checkpoints: data must be text or None, not 7",
    ),
    "minutes as text": (
        lambda: Checkpoints("x", every_minutes="5"),  # type: ignore[arg-type]
        FitError,
        "Checkpoints: every_minutes must be a positive number, not '5'",
    ),
    "checkpoints of EM": (
        lambda: fit(MIXTURE, X, EM(), checkpoint=Checkpoints("x")),
        FitError,
        "checkpoint= goes with SVI(…), and this fit is one of EM",
    ),
    "one callback without its list": (
        lambda: fit(VAE, X, SVI(), callbacks=print),  # type: ignore[arg-type]
        FitError,
        "callbacks: write a list, callbacks=[…], not ",
    ),
    "an evaluation of no fit": (
        lambda: evaluate(MIXTURE, X),  # type: ignore[arg-type]
        FitError,
        "evaluate takes a Fit, as fit(…) and load(…) give it, not ",
    ),
    "a run that is not there": (
        lambda: resume("no/such/run"),
        FitError,
        "no/such/run: no checkpoints here: the folder does not exist",
    ),
    "a run by number": (
        lambda: resume(5),  # type: ignore[arg-type]
        FitError,
        "resume: path must name the folder of the checkpoints, not 5",
    ),
    # Weights, holes and labels under SVI.
    "too few weights": (
        lambda: fit(VAE, X, SVI(epochs=1), weights=[1.0, 2.0]),
        DataError,
        "'weights' has 2 weights and the data 30 rows; each row needs one",
    ),
    "negative weights": (
        lambda: fit(VAE, X, SVI(epochs=1), weights=-np.ones(30)),
        DataError,
        "'weights' holds -1 in row 0 (counting from 0), where weights are 0 or more",
    ),
    "weights of nothing": (
        lambda: fit(VAE, X, SVI(epochs=1), weights=np.zeros(30)),
        DataError,
        "'weights' is 0 in every row: some row has to count",
    ),
    "a label too many": (
        lambda: fit(TWO_CLASSES, {"x": X, "z": ["a", "b", "c"] * 10}, SVI(epochs=1)),
        DataError,
        "column 'z' has 3 levels and 'z' is declared with 2 categories: 'a', 'b', 'c'",
    ),
    "a hole in a continuous latent that is given": (
        lambda: fit(VAE, {"x": X, "z": np.r_[[5.0], np.full(29, np.nan)]}, SVI(epochs=1)),
        DataError,
        "column 'z' has 29 missing values (NaN or blank), the first in row 1 (counting from 0); other nodes depend "
        "on 'z' and its values cannot be summed over",
    ),
    # Nets and Inputs.
    "a network of another width": (
        lambda: fit(
            Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(2, loc=Net(torch.nn.Linear(2, 5), "z"))}),
            X,
            SVI(epochs=1),
        ),
        SpecError,
        "x.loc: <Linear> turns (4, 2) into (4, 5); needed is (4, 2)",
    ),
    "a network of another input": (
        lambda: fit(
            Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(2, loc=Net(torch.nn.Linear(3, 2), "z"))}),
            X,
            SVI(epochs=1),
        ),
        SpecError,
        "x.loc: <Linear> fails on rows of 2 numbers, (4, 2): RuntimeError: mat1 and mat2 shapes",
    ),
    "an Input of no columns": (
        lambda: Input(0),
        SpecError,
        "Input's dim must be a whole number from 1 to 2147483647, got 0",
    ),
    "an Input's option": (
        model("  u: Input(2, loc=0)\n  x: Normal(1, loc=Linear(u))\n"),
        SpecError,
        "<text>:2:15: Input has no option 'loc'; its options: dim, k",
    ),
    "an Input that the data lack": (
        lambda: fit(REGRESSION, {"y": np.arange(9.0)}),
        DataError,
        "the data lack the Input 'u'; they have y",
    ),
    "an Input of more levels": (
        lambda: fit(
            Spec(model={"u": Input(k=2), "x": Normal(2, loc=By("u"))}),
            {"x": X, "u": ["a", "b", "c"] * 10},
        ),
        DataError,
        "column 'u' has 3 levels and 'u' is declared with 2 categories: 'a', 'b', 'c'",
    ),
    "a kernel of nothing": (
        model("  z: Normal(2, loc=0, scale=1)\n  x: Normal([1, 8, 8], loc=Conv(z, [8], kernel=0))\n"),
        SpecError,
        "Conv's kernel must be a whole number from 1 to 2147483647, got 0",
    ),
    "an unknown activation": (
        model(
            '  z: Normal(2, loc=0, scale=1)\n  x: Normal([1, 8, 8], loc=Conv(z, [8], activation="rely"))\n'
        ),
        SpecError,
        "got 'rely'; did you mean 'relu'?",
    ),
    "a flow of another size": (
        flow("Flow(3)"),
        SpecError,
        "'z' has dim=3 in the guide (Flow(3)), but dim=8 in the model",
    ),
    "an unknown option of a flow": (
        flow("Flow(8, layers=3)"),
        SpecError,
        "Flow has no option 'layers'; its options: dim, loc, scale, context, transforms, kind, hidden, activation",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_said_in_the_users_terms(case):
    attempt, kind, expected = WRONG[case]
    with pytest.raises(kind) as raised:
        attempt()
    assert expected in str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert "Traceback" not in str(raised.value)
    assert "torch." not in str(raised.value) or "as lambda" in str(raised.value)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> tuple[Fit, Path]:
    result = fit(MIXTURE, {"x": X}, EM(restarts=1, max_steps=5))
    place = tmp_path_factory.mktemp("fits") / "mixture"
    result.save(place)
    return result, place


@pytest.fixture(scope="module")
def vae() -> Fit:
    return fit("vae", {"x": X}, SVI(epochs=1))


@pytest.fixture(scope="module")
def items() -> Fit:
    answers = np.array([["a", "b"], ["b", "a"], ["a", "a"]] * 10)
    return fit(latent_class(2), {"x": answers}, EM(restarts=1, max_steps=5))


ASKED_WRONGLY: dict[str, tuple[str, Callable[[Fit], object], type[Exception], str]] = {
    "classes of a VAE": ("vae", lambda f: f.predict(X), FitError, "continuous: transform gives their means"),
    "probabilities of a VAE": ("vae", lambda f: f.predict_proba(X), FitError, "transform gives their means"),
    "means of a mixture": (
        "mixture",
        lambda f: f.transform(X),
        FitError,
        "the model has no continuous latent",
    ),
    "another width": (
        "mixture",
        lambda f: f.predict(X[:, :1]),
        DataError,
        "'x' was fitted on 2 columns (x[0], x[1]) and the data give it 1",
    ),
    "other columns": (
        "mixture",
        lambda f: f.predict(pd.DataFrame({"p": [1.0], "q": [2.0]})),
        DataError,
        "the data lack the leaf 'x' (columns x[0], x[1]); they have p, q",
    ),
    "infinity": (
        "mixture",
        lambda f: f.score_samples(holding(np.inf)),
        DataError,
        "column 'x[1]' has 2 infinite values",
    ),
    "no draws": (
        "vae",
        lambda f: evaluate(f, X, draws=0),
        FitError,
        "draws must be a whole number from 1, not 0",
    ),
    "a negative seed": (
        "vae",
        lambda f: evaluate(f, X, draws=2, seed=-1),
        FitError,
        "seed must be a whole number from 0, not -1",
    ),
    "an activity that is no variance": (
        "vae",
        lambda f: evaluate(f, X, draws=2, active=-1),
        FitError,
        "active must be a variance, a number from 0, not -1",
    ),
    "weights without rows": (
        "vae",
        lambda f: evaluate(f, weights=np.ones(30), draws=2),
        FitError,
        "weights go with data; the rows of the fit have the weights they were fitted with",
    ),
    "a level never seen": (
        "items",
        lambda f: f.predict(np.array([["a", "a"], ["a", "c"]])),
        DataError,
        "column 'x[1]' holds 'c' in row 1 (counting from 0), a level never seen (1 such cell); "
        "the levels are 'a', 'b'",
    ),
}


@pytest.mark.parametrize("case", ASKED_WRONGLY)
def test_a_query_that_cannot_be_answered_says_what_can(case, request):
    which, ask, kind, expected = ASKED_WRONGLY[case]
    found = request.getfixturevalue(which)
    with pytest.raises(kind) as raised:
        ask(found if isinstance(found, Fit) else found[0])
    assert expected in str(raised.value)


def test_a_fit_is_not_written_over_another_unasked(mixture):
    result, place = mixture
    with pytest.raises(FitError, match="exists already; replace=True"):
        result.save(place)
    result.save(place, replace=True)
    assert load(place).log_likelihood == result.log_likelihood


def test_a_folder_that_cannot_be_written_is_named(mixture, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FitError, match=r"file.fit: cannot be written"):
        mixture[0].save(tmp_path / "file" / "fit")


@pytest.mark.parametrize("damage", ["cut short", "one bit", "missing"])
@pytest.mark.parametrize("name", ["spec.yaml", "params.safetensors", "fit.json"])
def test_a_damaged_saved_fit_is_refused_by_the_files_name(mixture, tmp_path, name, damage):
    place = tmp_path / "fit"
    shutil.copytree(mixture[1], place)
    content = bytearray((place / name).read_bytes())
    if damage == "missing":
        (place / name).unlink()
    elif damage == "cut short":
        (place / name).write_bytes(bytes(content[:-3]))
    else:
        content[len(content) // 2] ^= 1
        (place / name).write_bytes(bytes(content))
    with pytest.raises(FitError) as raised:
        load(place)
    assert name in str(raised.value)


def test_a_place_without_a_fit_is_named(tmp_path):
    with pytest.raises(FitError, match="no saved fit here: the folder does not exist"):
        load(tmp_path / "nothing")


def test_what_is_odd_but_usable_is_a_warning_that_names_the_column():
    x = X.copy()
    x[:, 1] = 3.0
    with pytest.warns(UserWarning, match=r"column 'x\[1\]' of 'x': the same value in every row"):
        result = fit(MIXTURE, {"x": x}, EM(restarts=1, max_steps=20))
    assert np.isfinite(result.log_likelihood)
    with pytest.warns(UserWarning, match="not identified; write loc=0, scale=1"):
        fit(Spec(model={"z": Normal(1), "x": Normal(loc=Linear("z"))}), {"x": X}, SVI(epochs=1))


def test_a_collapsed_fit_is_finite_and_warns():
    x = np.repeat([[0.0, 0.0], [9.0, 9.0]], 10, axis=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(MIXTURE, {"x": x}, EM(restarts=2))
    assert any("collapsed onto a singular component" in str(warning.message) for warning in caught)
    assert np.isfinite(result.log_likelihood)
    assert not result.converged
    assert len(result.predict(x)) == 20


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            torch.optim.LBFGS,
            "LBFGS evaluates the loss several times a step, by a closure; .* Take one of adadelta",
        ),
        (lambda leaves: torch.optim.SparseAdam(leaves), "SparseAdam fails on its step: .*; take one of"),
        (lambda leaves: 3, "gives 3, which is no torch optimiser; take one of"),
        (lambda: None, "function fails on the parameters: .*; take one of"),
    ],
)
def test_an_optimiser_that_svi_cannot_use_is_told_with_the_choices(optimizer: object, said: str) -> None:
    with pytest.raises(FitError, match=said):
        fit(MIXTURE, X, SVI(epochs=1, optimizer=optimizer))


def test_a_column_whose_squares_overflow_is_named() -> None:
    spec = Spec(model={"z": Categorical(2), "x": Normal(2, loc=By("z"), scale=1)})
    with (
        pytest.warns(UserWarning, match=r"column 'x\[1\]' of 'x' \(mean .* has squares beyond"),
        pytest.warns(UserWarning, match="collapsed"),
    ):
        fit(spec, {"x": X * [1.0, 1e160]}, EM(restarts=2))
