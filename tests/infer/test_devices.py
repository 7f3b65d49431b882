"""A step stays on the device of its tensors and waits for nothing: found out without one.

Tensors of torch's "meta" device have shapes and no numbers. They refuse to be computed with beside tensors of the
CPU, and to have a number read from them, which on CUDA would wait for all work before it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_gen import SVI, compile_spec, read_spec
from ppl_gen.infer.ascent import Ascent
from ppl_gen.program.lowering import pyro_scope

MODELS = {  # and numbers of columns
    "factor_analysis": {"x": 4},
    "mixture_of_factor_analysers": {"x": 4},
    "vae": {"x": 4},
    "vae_diagonal": {"x": 4},
    "vae_bernoulli": {"x": 4},
    "vae_conditional": {"x": 4, "u": 1},
    "vae_counts": {"x": 4, "log_size": 1},
    "vae_mixed": {"size": 2, "visits": 2, "kind": 1},
    "vae_supervised": {"x": 4, "y": 1},
    "semi_supervised_vae": {"x": 4, "y": 1},
    "vae_flow": {"x": 4},
    "vae_full_covariance": {"x": 4},
    "vae_hierarchical": {"x": 4},
    "vae_two_latents": {"x": 4, "y": 2},
    "gm_vae": {"x": 4},
    "vae_convolutional": {"x": 64},
}
PLAIN = SVI(batch_size=8)
MUCH = SVI(
    batch_size=8,
    particles=2,
    beta=2.0,
    warm_up=2,
    free_bits=0.1,
    clip_norm=1.0,
    weight_decay=0.1,
    kl="analytic",
)


def elsewhere(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@pytest.mark.parametrize("algorithm", [PLAIN, MUCH], ids=["plain", "much"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_svi_stays_on_its_device_and_reads_no_number(name, algorithm):
    random = np.random.default_rng(0)
    rows = {own: random.integers(2, size=(20, n)).astype(float) for own, n in MODELS[name].items()}
    rows |= {own: np.arange(20) % 3 for own in rows if MODELS[name][own] == 1 and own != "log_size"}
    if name == "semi_supervised_vae":
        rows["y"] = np.where(random.random(20) < 0.5, rows["y"], np.nan)
    program = compile_spec(read_spec(name), rows, dtype=torch.float32)
    data = program.tensors(rows)
    with pyro_scope():
        ascent = Ascent(program, algorithm, data, planned=10)
        own = (ascent.blocks, ascent.memory, ascent.knobs, ascent.buffers, data, torch.arange(8))
        moved = ascent.step.step(*tree_map(elsewhere, own), tree_map(elsewhere, ascent.centring.means))
    found: list[Tensor] = []
    tree_map(found.append, moved)
    assert {tensor.device.type for tensor in found} == {"meta"}
