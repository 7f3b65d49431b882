"""Starts number their classes as an ordered table will have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, Exponential, Node, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By
from ppl_gen.infer.declared_order import rearranged, relabelled
from ppl_gen.program.program import compile_spec

R = np.random.default_rng(0)
CLASS = np.repeat([0, 1, 2], 40)
ORDERED = By("z", ordered=True)


@pytest.mark.parametrize(
    ("node", "rows"),
    [
        (Normal(1, loc=ORDERED, scale=By("z")), R.normal([[-5.0]] * 40 + [[0.0]] * 40 + [[5.0]] * 40)),
        (Normal(1, loc=0, scale=ORDERED), R.normal(0, [[0.1]] * 40 + [[1.0]] * 40 + [[9.0]] * 40)),
        # The rate falls where the mean rises.
        (Exponential(1, rate=ORDERED), R.exponential([[90.0]] * 40 + [[9.0]] * 40 + [[1.0]] * 40)),
    ],
    ids=["loc", "scale", "rate"],
)
def test_every_numbering_of_the_same_clusters_begins_in_the_declared_order(
    node: Node, rows: np.ndarray
) -> None:
    spec = Spec(model={"z": Categorical(3), "x": node})
    rows[3] = np.nan
    table = read_table({"x": rows}, spec)
    program = compile_spec(spec, {"x": rows})
    numberings = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 2, 0]])
    labels = numberings[:, CLASS]
    assert (relabelled(program, table, labels).numpy() == CLASS).all()
    shares = 0.1 + (labels[:, None] == torch.arange(3)[:, None]).double()
    assert (rearranged(program, table, shares, 0).argmax(1).numpy() == CLASS).all()


def test_beside_another_latent_only_the_ordered_one_is_renumbered() -> None:
    spec = Spec(
        model={
            "a": Categorical(2),
            "z": Categorical(3),
            "x": Normal(1, loc=ORDERED),
            "y": Normal(1, loc=By(["a", "z"])),
        }
    )
    data = {"x": R.normal(9.0 * CLASS[:, None]), "y": np.zeros((120, 1)) + R.normal(size=(120, 1))}
    table, program = read_table(data, spec), compile_spec(spec, data)
    other = np.arange(120) % 2
    labels = torch.from_numpy(other + 2 * (2 - CLASS))  # the first latent turns fastest
    found = relabelled(program, table, labels.unsqueeze(0))[0].numpy()
    assert (found == other + 2 * CLASS).all()


def test_without_an_ordered_table_labels_stay_as_drawn() -> None:
    spec = Spec(model={"z": Categorical(3), "x": Normal(1, loc=By("z"))})
    data = {"x": R.normal(size=(120, 1))}
    table, program = read_table(data, spec), compile_spec(spec, data)
    labels = torch.from_numpy(CLASS).unsqueeze(0)
    assert relabelled(program, table, labels) is labels
