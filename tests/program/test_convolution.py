"""Convolutions, held against SciPy's and against the language's promise of where they fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d, correlate2d

from ppl_gen.certify.certify import certify
from ppl_gen.data.reading import read_table
from ppl_gen.data.sizes import schema_without_data
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.images import image_of, sizes_between
from ppl_gen.declare.nodes import Bernoulli, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Conv
from ppl_gen.errors import SpecError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Status
from ppl_gen.program.program import Program, compile_spec

RANDOM = np.random.default_rng(3)
LATENT = "model:\n  z: Normal(2, loc=0, scale=1)\n"


def shaken(program: Program) -> Program:
    """The program with numbers that nothing is equal in by chance."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return program.double()


def test_an_encoder_is_scipys_correlation_with_every_second_pixel():
    spec = read_spec(LATENT + "  x: Normal([2, 6, 5], loc=Linear(z))\nguide:\n  h: Conv(x, [3])\n"
                     "  z: Normal(2, loc=Linear(h), scale=1)\n")  # fmt: skip
    rows = RANDOM.normal(size=(4, 2, 6, 5)) * [[[3.0]], [[0.1]]] + [[[7.0]], [[0.0]]]
    program = shaken(compile_spec(spec, {"x": rows}, dtype=torch.float64))
    values = program.tensors({"x": rows.reshape(4, -1)})
    program.recognition._fill(values)
    layer = program.recognition.layers["h:"]
    weight, bias = layer.weights[0].detach().numpy(), layer.biases[0].detach().numpy()
    units = (rows - rows.mean((0, 2, 3), keepdims=True)) / rows.std((0, 2, 3), keepdims=True)
    wide = np.pad(units, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for row in range(4):
        for out in range(3):
            image = sum(correlate2d(wide[row, c], weight[out, c], mode="valid") for c in range(2))
            expected = np.maximum(image[::2, ::2] + bias[out], 0)
            found = values["h"][row].detach().numpy().reshape(3, 3, 2)[out]
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_decoder_is_scipys_convolution_of_the_pixels_set_apart():
    spec = read_spec(LATENT + '  x: Normal([2, 7, 6], loc=Conv(z, [3], activation="tanh"), scale=1)\n')
    program = shaken(compile_spec(spec, schema_without_data(spec)))
    z = torch.randn(4, 2, dtype=torch.float64)
    layer = program.generative.layers["x:loc"]
    found = layer({"z": z}).detach().numpy().reshape(4, 2, 7, 6)
    first, second = (weight.detach().numpy() for weight in layer.weights)
    start = np.tanh(z.numpy() @ first.T + layer.biases[0].detach().numpy()).reshape(4, 3, 3, 3)
    for row in range(4):
        for out in range(2):
            image = np.zeros((9, 9))  # pixels two apart, and room for the last window
            for c in range(3):
                apart = np.zeros((6, 6))
                apart[::2, ::2] = start[row, c]
                image += convolve2d(apart, second[c, out])
            expected = image[1:8, 1:7] + layer.biases[1].detach().numpy()[out]
            np.testing.assert_allclose(found[row, out], expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 2),
    st.integers(3, 17),
    st.integers(3, 17),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 3),
)
def test_every_convolution_that_fits_gives_an_image_of_the_nodes_size(
    C, H, W, kernel, stride, padding, depth
):
    assume(padding < kernel)
    term = Conv("z", [2] * depth, kernel=kernel, stride=stride, padding=padding)
    try:
        sizes_between(term, (C, H, W), "x.loc")
    except SpecError:
        assume(False)
    spec = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal([C, H, W], loc=term, scale=1)})
    program = compile_spec(spec, schema_without_data(spec))
    rows = {"x": torch.zeros(3, C * H * W, dtype=program.dtype)}
    assert program.model({}, n=3)["x"].shape == (3, C * H * W)
    assert program.guide(rows)["z"].shape == (3, 2)  # the derived guide comes back through the same sizes


NEIGHBOURS = {
    "a grey image's logits": "  x: Bernoulli([6, 6], logits=Conv(z, [4]))\n",
    "reals in channels, missing pixels": "  x: Normal([2, 4, 4], loc=Conv(z, [3]), scale=Free())\n",
    "levels of a pixel": "  x: Categorical(3, dim=[1, 4, 4], logits=Conv(z, [4, 3], kernel=3, stride=1))\n",
    "a class beside the latent": "  c: Categorical(2)\n  x: Bernoulli([4, 4], logits=Conv([z, c], [3]))\n",
    "within a sum": "  u: Input(1)\n  x: Bernoulli([4, 4], logits=Conv(z, [3]) + Linear(u))\n",
    "a hidden layer between": "  h: MLP(z, [5])\n  x: Bernoulli([4, 4], logits=Conv(h, [3]))\n",
}


@pytest.mark.parametrize("which", NEIGHBOURS)
def test_the_certificates_own_reading_agrees(which):
    spec = read_spec(LATENT + NEIGHBOURS[which])
    width = spec.nodes["x"].width
    if which.startswith("reals"):
        x = RANDOM.normal(size=(30, width)) * 3 + 5
        x[RANDOM.uniform(size=x.shape) < 0.2] = np.nan
    else:
        x = RANDOM.integers(0, 3 if which.startswith("levels") else 2, (30, width)).astype(float)
    data = {"x": x} | ({"u": RANDOM.normal(size=(30, 1))} if "u" in spec.inputs else {})
    table = read_table(data, spec)
    program = shaken(compile_spec(spec, table.schema))
    run = Run(dict(program.state_dict()), (0.0,), Status.EPOCHS_DONE, algorithm="SVI")
    (objective,) = [line for line in certify(program, run, table).lines if line.name == "objective"]
    assert objective.ok, objective


def test_particles_and_rows_do_not_mix():
    spec = read_spec(LATENT + "  c: Categorical(2)\n  x: Bernoulli([4, 4], logits=Conv([z, c], [3]))\n")
    x = RANDOM.integers(0, 2, (6, 16)).astype(float)
    program = shaken(compile_spec(spec, {"x": x}))
    rows = program.tensors({"x": x})
    torch.manual_seed(0)
    with torch.no_grad():
        together = TraceableELBO(5).per_row(program.model, program.guide, rows)
    torch.manual_seed(0)
    noise = torch.randn(5, 6, 2, dtype=torch.float64)
    guide = program.recognition.distribution("z", dict(rows))
    z = guide.loc + guide.scale * noise
    alone = torch.zeros(5, 6, dtype=torch.float64)
    for s in range(5):
        for row in range(6):
            at = {"z": z[s, row : row + 1], "x": rows["x"][row : row + 1]}
            joint = [
                sum(program.density(name, at | {"c": torch.tensor([c])}) for name in ("z", "c", "x"))
                for c in range(2)
            ]
            q = guide.loc[row : row + 1], guide.scale[row : row + 1]
            log_q = torch.distributions.Normal(*q).log_prob(at["z"]).sum(-1)
            alone[s, row] = (torch.stack(joint).logsumexp(0) - log_q).detach()
    torch.testing.assert_close(together, alone.mean(0), rtol=1e-12, atol=1e-12)


def test_flat_rows_and_images_are_the_same_data():
    spec = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Bernoulli([1, 4, 6], logits=Conv("z", [2]))})
    images = RANDOM.integers(0, 2, (5, 4, 6)).astype(float)
    for data in (images.reshape(5, 24), images, images[:, None], {"x": images[..., None]}):
        np.testing.assert_array_equal(read_table(data, spec).arrays["x"], images.reshape(5, 24))
    assert image_of(spec.nodes["x"].dim) == (1, 4, 6)


def test_it_learns_where_bars_are():
    """A bar at one of eight heights: pixels on their own, with no latent, cannot say that it is one."""
    random = np.random.default_rng(7)
    at = random.integers(0, 8, 600)
    bars = np.zeros((600, 8, 8))
    bars[np.arange(600), at] = 1
    noisy = np.where(random.uniform(size=bars.shape) < 0.02, 1 - bars, bars)
    p = noisy.mean(0)
    independent = (noisy * np.log(p) + (1 - noisy) * np.log1p(-p)).sum((1, 2)).mean()
    result = fit(
        "vae_convolutional",
        {"x": noisy.reshape(600, 64)},
        SVI(epochs=12, batch_size=20, learning_rate=3e-3),
    )
    # A bar's place is log 8 nats and its noise 6.3, 64 pixels' entropy at 2 %; pixels on their own cost 26.
    assert result.elbo / 600 > independent + 3
