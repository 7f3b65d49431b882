"""A network of the user's own is a term like another: fitted, named, stored, and never run unasked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppl_gen.certify.certificate import Certificate
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import Categorical, Input, Normal
from ppl_gen.declare.notation import parse_entry
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Linear, Net
from ppl_gen.errors import FitError, SpecError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.program.program import compile_spec
from ppl_gen.results.storage import load

X = np.random.default_rng(0).normal(size=(40, 3))
SHORT = SVI(epochs=2, batch_size=20)
LATENT = {"z": Normal(2, loc=0, scale=1)}
TEXT = 'model:\n  z: Normal(2, loc=0, scale=1)\n  x: Normal(3, loc=Net("torch.nn:Linear", z), scale=1)\n'


def decoder(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def with_dropout(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Dropout(), nn.Linear(8, outputs))


def normalised(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs))


def too_narrow(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs - 1)


def too_demanding(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs + 1, outputs)


def not_one(inputs: int, outputs: int) -> int:
    return inputs + outputs


class Mixing(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(rows - rows.mean(0))


def of(module: object) -> Spec:
    return Spec(model=LATENT | {"x": Normal(3, loc=Net(module, "z"), scale=1)})


def test_a_linear_module_is_linear():
    ours = compile_spec(
        Spec(model=LATENT | {"x": Normal(3, loc=Linear("z"), scale=1)}), {"x": X}, dtype=torch.float64
    )
    theirs = compile_spec(of("torch.nn:Linear"), {"x": X}, dtype=torch.float64)
    own = dict(ours.generative.layers.named_parameters())
    net = dict(theirs.generative.layers.named_parameters())
    assert set(net) == {"x:loc.net.weight", "x:loc.net.bias"}
    with torch.no_grad():
        for name in ("weight", "bias"):
            net[f"x:loc.net.{name}"].copy_(own[f"x:loc.{name}"])
        z = torch.randn(5, 40, 2, dtype=torch.float64)
        densities = [p.density("x", {"z": z, "x": torch.from_numpy(X)}) for p in (ours, theirs)]
    torch.testing.assert_close(*densities, rtol=1e-13, atol=1e-13)


def test_in_a_guide_it_sees_data_as_an_mlp_does_and_every_number_learns():
    spec = Spec(
        model={"u": Input(k=2), **LATENT, "x": Normal(3, loc=Linear(["z", "u"]))},
        guide={
            "h": Net(decoder, ["x", "u"], dim=4),
            "z": Normal(2, loc=Linear("h"), scale=Net(decoder, "h")),
        },
    )
    data = {"x": 1e6 + X, "u": np.arange(40) % 2}
    program = compile_spec(spec, data, dtype=torch.float64)
    rows = program.tensors({"x": data["x"], "u": data["u"]})
    values = dict(rows)
    program.recognition._fill(values)
    net = program.recognition.layers["h:"].net
    standard = (data["x"] - data["x"].mean(0)) / data["x"].std(0)
    one_hot = np.eye(2)[data["u"]]
    torch.testing.assert_close(values["h"], net(torch.from_numpy(np.concatenate([standard, one_hot], 1))))
    TraceableELBO().differentiable_loss(program.model, program.guide, rows).backward()
    for path, parameter in program.named_parameters():
        assert parameter.grad is not None, path
        assert float(parameter.grad.abs().max()) > 0, path


def test_a_module_begins_where_it_is_and_stays_untouched_what_is_frozen_stays():
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    module[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fresh = compile_spec(of(module), {"x": X}).generative.layers["x:loc"].net.state_dict()
    fitted = fit(of(module), X, SHORT).program.generative.layers["x:loc"].net.state_dict()
    for name, value in before.items():
        assert torch.equal(fresh[name], value)
        assert torch.equal(module.state_dict()[name], value)
        assert torch.equal(fitted[name], value) == (name == "0.weight")


def test_the_certificate_withholds_its_verdict_and_says_why():
    certificate: Certificate = fit(of(decoder), X, SHORT).certificate
    (line,) = [line for line in certificate.lines if line.name == "objective"]
    assert line.ok is None
    assert "network of your own" in line.text


def test_a_function_that_can_be_imported_is_written_by_its_place():
    place = f"{decoder.__module__}:decoder"
    assert of(decoder).model["x"].loc == Net(place, "z")
    text = str(Net(decoder, ["z", "u"], dim=4, transform="softplus"))
    assert text == f'Net("{place}", [z, u], dim=4, transform="softplus")'
    assert parse_entry(text, trust=True) == Net(decoder, ["z", "u"], dim=4, transform="softplus")


def test_a_text_runs_no_code_unless_it_is_trusted(tmp_path):
    with pytest.raises(SpecError, match=r"<text>:3:20: Net names code to be run \('torch.nn:Linear'\)"):
        read_spec(TEXT)
    with pytest.raises(SpecError, match="Net names code"):
        of("torch.nn:Linear").replace("x.loc", 'Net("os:system", z)')
    (tmp_path / "model.yaml").write_text(TEXT)
    with pytest.raises(SpecError, match="trust=True, or --trust"):
        fit(str(tmp_path / "model.yaml"), X, SHORT)
    assert read_spec(tmp_path / "model.yaml", trust=True) == read_spec(str(of("torch.nn:Linear")), trust=True)


def test_a_fit_is_stored_without_code_and_rebuilt_only_with_trust(tmp_path):
    fitted = fit(of(decoder), X, SHORT)
    fitted.save(tmp_path / "fit")
    assert sorted(p.name for p in (tmp_path / "fit").iterdir()) == [
        "fit.json",
        "history.csv",
        "params.safetensors",
        "spec.yaml",
    ]
    with pytest.raises(FitError, match="Net names code to be run"):
        load(tmp_path / "fit")
    again = load(tmp_path / "fit", trust=True)
    np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    asked = load(tmp_path / "fit", nets={f"{decoder.__module__}:decoder": decoder})
    np.testing.assert_array_equal(asked.score_samples(X), fitted.score_samples(X))


def test_what_no_text_can_name_is_given_back_at_load(tmp_path):
    fitted = fit(of(decoder(2, 3)), X, SHORT)
    fitted.save(tmp_path / "fit")
    for trust in (False, True):
        with pytest.raises(FitError, match="<Sequential> was made in memory"):
            load(tmp_path / "fit", trust=trust)
    for what in (decoder, decoder(2, 3)):
        again = load(tmp_path / "fit", nets={"<Sequential>": what})
        np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))
    with pytest.raises(FitError, match="does not hold this model's parameters"):
        load(tmp_path / "fit", nets={"<Sequential>": nn.Linear})


WRONG = {
    "dropout": (with_dropout, "x.loc: test_nets:with_dropout acts differently in training and in use"),
    "batch normalisation": (normalised, "x.loc: test_nets:normalised acts differently in training and in use"),
    "rows that meet": (Mixing, "x.loc: test_nets:Mixing gives a row another value when other rows stand beside it"),
    "too few outputs": (too_narrow, "x.loc: test_nets:too_narrow turns (4, 2) into (4, 2); needed is (4, 3)"),
    "too many inputs": (too_demanding, "x.loc: test_nets:too_demanding fails on rows of 2 numbers, (4, 2): Run"),
    "no module": (not_one, "x.loc: test_nets:not_one gives a int, not a torch.nn.Module"),
    "no such name": ("torch.nn:Linaer", "x.loc: torch.nn:Linaer cannot be imported: AttributeError"),
    "no such module": ("nowhere.nets:make", "x.loc: nowhere.nets:make cannot be imported: ModuleNotFoundError"),
    "nothing to call": ("torch:pi", "x.loc: torch:pi is a float, nothing to call"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_network_is_said(case):
    module, message = WRONG[case]
    with pytest.raises(SpecError) as raised:
        compile_spec(of(module), {"x": X})
    assert message.replace("test_nets", decoder.__module__) in str(raised.value)


def test_classes_that_are_sorted_by_weight_take_no_network_of_ones_own():
    model = {"u": Input(2), "z": Categorical(2, logits=Net(decoder, "u")), "x": Normal(3, loc=Free())}
    with pytest.raises(SpecError, match=r"z.logits: Net\(.*\) gives the probabilities of a latent"):
        compile_spec(Spec(model=model | {"x": Normal(3, loc=Linear("u", by="z"))}), {"u": X[:, :2], "x": X})
