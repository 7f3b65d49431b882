"""One training step of a VAE against Pyro's `SVI.step`, hand-written PyTorch with fused Adam, and NumPyro.

    python benchmarks/svi_step.py [--problem small --rounds 5 --peer-python PATH]
                                  [--sides compiled together traced pyro torch numpyro scan]

together: the compiled step, eight of them in a call (`SVI(steps_per_execution=8)`). scan: NumPyro's step, a block
of them in a call.

tiny: 64 pixels, MLP 8, 2 latents, normal pixels. small: 64 pixels, MLP 64, 8 latents, normal pixels. large: 784
pixels, MLP 400, 20 latents, black-and-white pixels.
classes: 784 pixels, MLP 256, 8 latents and a class of 10 that is summed out exactly (Pyro: `TraceEnum_ELBO`).
Batches of 128, float32, Adam at 1e-3; the same rows for every side, each picking its batch by a shuffled index.
Every measurement is a process of its own: a warm-up, then the median over blocks of steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from timing import compare, parser, ratios, threads

SIDES = ("compiled", "traced", "pyro", "torch", "numpyro", "together", "scan")
BATCH = 128
PROBLEMS = {  # pixels, hidden units, latents, classes, whether pixels are black or white, steps of a block
    "tiny": (64, 8, 2, 0, False, 200),
    "small": (64, 64, 8, 0, False, 200),
    "large": (784, 400, 20, 0, True, 40),
    "classes": (784, 256, 8, 10, True, 30),
}
BLOCKS = 7
TOGETHER = 8  # steps of a call


def rows(pixels: int, binary: bool) -> Any:
    """scikit-learn's 1 797 digits, enlarged to 28×28 where asked for."""
    from sklearn.datasets import load_digits

    x = load_digits().images / 16
    if pixels == 784:
        x = np.pad(np.kron(x, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
    x = x.reshape(len(x), -1)
    return (x > 0.5 if binary else x).astype(np.float32)


def batches(n: int) -> Callable[[], Any]:
    """Shuffled indices of full batches, one epoch after another."""
    random, queue = np.random.default_rng(0), []

    def following() -> Any:
        if not queue:
            order = random.permutation(n)
            queue.extend(np.split(order[: n // BATCH * BATCH], n // BATCH))
        return queue.pop()

    return following


def ours(problem: str, lowering: str) -> Callable[[], object]:
    """A step of our loop: rows picked, loss, gradient, guard and Adam; or several at a time."""
    import torch

    from ppl_gen import MLP, SVI, Bernoulli, By, Categorical, Linear, Normal, Spec, compile_spec
    from ppl_gen.infer.ascent import Ascent

    pixels, hidden, latents, classes, binary, _ = PROBLEMS[problem]
    decoder = MLP("z", [hidden])
    model: dict[str, Any] = {"c": Categorical(classes)} if classes else {}
    model["z"] = Normal(latents, loc=By("c"), scale=By("c")) if classes else Normal(latents, loc=0, scale=1)
    model["x"] = Bernoulli(pixels, logits=decoder) if binary else Normal(pixels, loc=decoder, scale=1)
    guide = {"h": MLP("x", [hidden]), "z": Normal(latents, loc=Linear("h"), scale=Linear("h"))}
    x = rows(pixels, binary)
    program = compile_spec(Spec(model=model, guide=guide), {"x": x}, seed=0)
    options: dict[str, Any] = {"lowering": lowering}
    if lowering == "together":
        options = {"lowering": "compiled", "steps_per_execution": TOGETHER}
    ascent = Ascent(program, SVI(batch_size=BATCH, **options), program.tensors({"x": x}), planned=0)
    pick = batches(len(x))
    if lowering == "together":
        shares = [1.0] * TOGETHER
        return lambda: ascent.advance_together(
            torch.stack([torch.from_numpy(pick()) for _ in shares]), ascent.data, shares
        )
    return lambda: ascent.advance(torch.from_numpy(pick()), full=True)


def networks(problem: str) -> list[Any]:
    """Trunk, location head, log-scale head and decoder in plain torch."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    pixels, hidden, latents, *_ = PROBLEMS[problem]
    trunk = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    return [trunk, nn.Linear(hidden, latents), nn.Linear(hidden, latents), decoder]


def pyro_step(problem: str) -> Callable[[], object]:
    """`pyro.infer.SVI.step` on a Pyro pair written by hand, validation off."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import Trace_ELBO, TraceEnum_ELBO

    pyro.enable_validation(False)
    pixels, _, latents, classes, binary, _ = PROBLEMS[problem]
    trunk, loc, log_scale, decoder = networks(problem)

    def model(x: Any) -> None:
        pyro.module("decoder", decoder)
        zero, one = torch.zeros(latents), torch.ones(latents)
        if classes:
            logits = pyro.param("logits", torch.zeros(classes))
            centre = pyro.param("centre", lambda: torch.randn(classes, latents))
            spread = pyro.param("spread", lambda: torch.zeros(classes, latents))
        with pyro.plate("rows", len(x), dim=-1):
            if classes:
                c = pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                zero, one = centre[c], spread[c].exp()
            z = pyro.sample("z", dist.Normal(zero, one).to_event(1))
            mean = decoder(z)
            law = dist.Bernoulli(logits=mean) if binary else dist.Normal(mean, torch.ones_like(mean))
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(x: Any) -> None:
        for name, module in (("trunk", trunk), ("loc", loc), ("log_scale", log_scale)):
            pyro.module(name, module)
        with pyro.plate("rows", len(x), dim=-1):
            h = trunk(x)
            pyro.sample("z", dist.Normal(loc(h), log_scale(h).exp()).to_event(1))

    loss = TraceEnum_ELBO(max_plate_nesting=1) if classes else Trace_ELBO()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    data = torch.from_numpy(rows(pixels, binary))
    pick = batches(len(data))
    return lambda: svi.step(data[torch.from_numpy(pick())])


def torch_step(problem: str) -> Callable[[], object]:
    """The same model in plain torch: closed-form KL, fused Adam."""
    import torch
    from torch.nn import functional as F

    pixels, _, _, classes, binary, _ = PROBLEMS[problem]
    if classes:
        raise SystemExit("the hand-written side has no classes")
    trunk, loc, log_scale, decoder = networks(problem)
    parameters = [p for m in (trunk, loc, log_scale, decoder) for p in m.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    data = torch.from_numpy(rows(pixels, binary))
    pick = batches(len(data))

    def step() -> None:
        x = data[torch.from_numpy(pick())]
        optimiser.zero_grad()
        h = trunk(x)
        mean, log_sd = loc(h), log_scale(h)
        out = decoder(mean + log_sd.exp() * torch.randn_like(mean))
        divergence = 0.5 * (mean**2 + (2 * log_sd).exp() - 1 - 2 * log_sd).sum()
        if binary:
            fit = F.binary_cross_entropy_with_logits(out, x, reduction="sum")
        else:
            fit = 0.5 * ((x - out) ** 2).sum()
        ((fit + divergence) / BATCH).backward()
        optimiser.step()

    return step


def numpyro_step(problem: str, scanned: bool) -> Callable[[], object]:
    """NumPyro's jitted `svi.update`, one call a step; `scanned`, `lax.scan` over a block of them in one call."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    pixels, hidden, latents, classes, binary, steps = PROBLEMS[problem]
    if classes:
        raise SystemExit("this side has no classes")
    sizes = {
        "trunk": (pixels, hidden),
        "loc": (hidden, latents),
        "log_scale": (hidden, latents),
        "in": (latents, hidden),
        "out": (hidden, pixels),
    }

    def layer(name: str, value: Any) -> Any:
        rows_in, rows_out = sizes[name]
        start = jax.random.uniform(jax.random.PRNGKey(len(name)), (rows_in, rows_out), minval=-1, maxval=1)
        weight = numpyro.param(f"{name}.weight", start / rows_in**0.5)
        return value @ weight + numpyro.param(f"{name}.bias", jnp.zeros(rows_out))

    def model(x: Any) -> None:
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latents), jnp.ones(latents)).to_event(1))
            mean = layer("out", jax.nn.relu(layer("in", z)))
            law = dist.Bernoulli(logits=mean) if binary else dist.Normal(mean, 1.0)
            numpyro.sample("x", law.to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("rows", len(x)):
            h = jax.nn.relu(layer("trunk", x))
            law = dist.Normal(layer("loc", h), jnp.exp(layer("log_scale", h)))
            numpyro.sample("z", law.to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    data = jnp.asarray(rows(pixels, binary))
    pick = batches(len(data))
    state = [svi.init(jax.random.PRNGKey(0), data[:BATCH])]
    if scanned:
        block = jax.jit(lambda s, index: jax.lax.scan(lambda carry, i: svi.update(carry, data[i]), s, index))

        def whole() -> None:
            state[0], loss = block(state[0], jnp.asarray(np.stack([pick() for _ in range(steps)])))
            loss.block_until_ready()

        return whole
    update = jax.jit(lambda s, index: svi.update(s, data[index]))

    def step() -> None:
        state[0], loss = update(state[0], pick())
        loss.block_until_ready()

    return step


def made(side: str, problem: str) -> Callable[[], object]:
    """A side's step; of `together` and `scan` a call of several."""
    if side in ("compiled", "traced", "together"):
        return ours(problem, side)
    if side in ("numpyro", "scan"):
        return numpyro_step(problem, side == "scan")
    return {"pyro": pyro_step, "torch": torch_step}[side](problem)


def main() -> None:
    """Print each side's milliseconds a step at its faster thread count, and the ratios."""
    command = parser(__doc__, SIDES, default=SIDES[:4])
    command.add_argument("--problem", choices=list(PROBLEMS), default="small")
    options = command.parse_args()
    if options.side is None:
        ratios(compare(__file__, [f"--problem={options.problem}"], options)[0])
        return
    steps = PROBLEMS[options.problem][-1]
    with threads(options.threads):
        begun = time.perf_counter()
        step = made(options.side, options.problem)
        step()
        started = time.perf_counter() - begun
        calls = steps // {"scan": steps, "together": TOGETHER}.get(options.side, 1)
        for _ in range(calls):
            step()
        taken = []
        for _ in range(BLOCKS):
            begun = time.perf_counter()
            for _ in range(calls):
                step()
            taken.append((time.perf_counter() - begun) / steps)
    print(statistics.median(taken), started)


if __name__ == "__main__":
    main()
