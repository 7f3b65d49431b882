"""How each latent is dealt with in a fit: summed out, enumerated, solved for, or drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributions import kl_divergence

from ppl_gen.data.sizes import is_scalar
from ppl_gen.infer.elbo import Sites, TraceableELBO
from ppl_gen.infer.objective import meets_summed
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program


def plan(program: Program, algorithm: Mapping[str, Any]) -> Iterator[str]:
    """A clause for each latent, in model order.

    Args:
        program: the compiled model.
        algorithm: as `described` gives it: its name, and SVI's options.

    Example:
        >>> from ppl_gen.program.program import compile_spec
        >>> program = compile_spec("vae", {"x": [[0.0, 1.0], [1.0, 0.5]]})
        >>> list(plan(program, {"name": "SVI", "kl": "analytic"}))
        ['z: reparameterised (Normal), KL in closed form']

    """
    if algorithm.get("name") != "SVI" and program.continuous:
        yield from (f"{name}: exact posterior (E1)" for name in program.continuous)
        return
    sampled = [name for name in program.recognition.draws if name in program.continuous]
    closed = _closed(program) if sampled and algorithm.get("kl") == "analytic" else set()
    for name, draw in program.generative.draws.items():
        values = f"({draw.sizes.k or 2} values)"
        where = " where it has no label" if name in program.schema.partial else ""
        if name in sampled:
            family = program.recognition.draws[name].node.family
            if algorithm.get("objective") == "iwae":
                yield f"{name}: reparameterised ({family}), importance-weighted"
            else:
                yield f"{name}: reparameterised ({family}), KL {'in closed form' if name in closed else 'sampled'}"
        elif name in program.enumerated:
            yield f"{name}: summed out exactly {values}{where}"
        elif name in program.recognition.draws:
            yield f"{name}: enumerated exactly in the guide {values}{where}"


def _closed(program: Program) -> set[str]:
    """The guide's latents for whose pair of families Pyro has a KL in closed form, as `Objective` takes it."""
    sites, found = _sites(program), set()
    for name, q in sites.q_laws.items():
        if meets_summed(sites, name):
            continue
        try:
            kl_divergence(q, sites.p_laws[name])
        except NotImplementedError:
            continue
        found.add(name)
    return found


def _sites(program: Program) -> Sites:
    """The sites on one row, whose values do not matter to their families."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in (*program.schema.roles.observed, *program.schema.roles.inputs):
        width = len(program.schema.columns[name])
        if program.spec.is_category(name):
            arrays[name] = np.zeros(
                (1,) if is_scalar(program.spec, name, width) else (1, width), dtype=np.int64
            )
        else:
            arrays[name] = np.ones((1, width))
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng():
        return TraceableELBO().sites(
            program.model, program.guide, program.tensors(arrays, program.schema.holes)
        )
