"""Well-known models by name, as declarations; the only place with mode strings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ppl_gen.declare.declared import nearest
from ppl_gen.declare.nodes import (
    Bernoulli,
    Categorical,
    MultivariateNormal,
    MultivariateStudentT,
    Node,
    Normal,
    Poisson,
    StudentT,
)
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.errors import SpecError

T = TypeVar("T")

COVARIANCES: dict[str, Callable[[], Node]] = {
    "full": lambda: MultivariateNormal(loc=By("z"), cov=By("z")),
    "tied": lambda: MultivariateNormal(loc=By("z"), cov=Free()),
    "diagonal": lambda: Normal(loc=By("z"), scale=By("z")),
    "spherical": lambda: Normal(loc=By("z"), scale=By("z", dim=1)),
}
HEAVY_TAILED: dict[str, Callable[[], Node]] = {
    "full": lambda: MultivariateStudentT(df=By("z"), loc=By("z"), cov=By("z")),
    "tied": lambda: MultivariateStudentT(df=By("z"), loc=By("z"), cov=Free()),
    "diagonal": lambda: StudentT(df=By("z"), loc=By("z"), scale=By("z")),
    "spherical": lambda: StudentT(df=By("z", dim=1), loc=By("z"), scale=By("z", dim=1)),
}


def gaussian_mixture(k: int, covariance: str = "full") -> Spec:
    """A mixture of k normals: p(x) = Σ_k π_k N(x; μ_k, Σ_k) (F7).

    Args:
        k: the number of classes.
        covariance: "full", "tied" (one for all classes), "diagonal", or "spherical" (one scale a class).

    Raises:
        SpecError: another word for the covariance.

    Example:
        >>> print(gaussian_mixture(3, "tied"))
        model:
          z: Categorical(3)
          x: MultivariateNormal(loc=By(z), cov=Free())
        <BLANKLINE>

    """
    return Spec(model={"z": Categorical(k), "x": _chosen(COVARIANCES, covariance, "covariance")})


def student_t_mixture(k: int, covariance: str = "full") -> Spec:
    """A mixture of k Student t's: a normal mixture whose classes are not pulled apart by outliers (F7).

    Args:
        k: the number of classes.
        covariance: "full", "tied" (one for all classes), "diagonal", or "spherical" (one scale a class). The last
            two have independent dimensions, each with tails of its own; the others are elliptical.

    Raises:
        SpecError: another word for the covariance.

    Example:
        >>> student_t_mixture(3).model["x"]
        MultivariateStudentT(df=By(z), loc=By(z), cov=By(z))

    """
    return Spec(model={"z": Categorical(k), "x": _chosen(HEAVY_TAILED, covariance, "covariance")})


def poisson_mixture(k: int) -> Spec:
    """A mixture of k Poisson counts: p(x) = Σ_k π_k Poisson(x; λ_k) (F7).

    Args:
        k: the number of classes.

    Example:
        >>> poisson_mixture(2).model["x"]
        Poisson(rate=By(z))

    """
    return Spec(model={"z": Categorical(k), "x": Poisson(rate=By("z"))})


def latent_class(k: int) -> Spec:
    """Latent class analysis: categorical items, independent within each of k classes (F7).

    Args:
        k: the number of classes; items and their levels come from the data.

    Example:
        >>> latent_class(3).model["x"]
        Categorical(probs=By(z))

    """
    return Spec(model={"z": Categorical(k), "x": Categorical(probs=By("z"))})


def factor_analysis(k: int) -> Spec:
    """Factor analysis: x = W z + b + noise, z ~ N(0, I_k), each column with its own noise (E1); exact EM.

    Args:
        k: the number of factors; the columns come from the data.

    Example:
        >>> print(factor_analysis(2))
        model:
          z: Normal(2, loc=0, scale=1)
          x: Normal(loc=Linear(z), scale=Free())
        <BLANKLINE>

    """
    return Spec(
        model={"z": Normal(k, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())},
    )


def probabilistic_pca(k: int) -> Spec:
    """Probabilistic PCA: factor analysis with one noise variance for all columns (E1); in closed form.

    Args:
        k: the number of components; the columns come from the data.

    Example:
        >>> probabilistic_pca(2).model["x"]
        Normal(loc=Linear(z), scale=Free(dim=1))

    """
    return Spec(
        model={"z": Normal(k, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free(dim=1))},
    )


def vae(latent: int, hidden: Sequence[int] = (256,), likelihood: str = "normal") -> Spec:
    """A variational autoencoder: z ~ N(0, I), x given z through a network; the guide is derived (F8, F9).

    Args:
        latent: the number of latent dimensions.
        hidden: the decoder's hidden sizes; the encoder has them reversed.
        likelihood: "normal" (unit variances), "diagonal" (learned ones), or "bernoulli" (binary data).

    Raises:
        SpecError: another word for the likelihood.

    Example:
        >>> print(vae(2, (64,), "bernoulli"))
        model:
          z: Normal(2, loc=0, scale=1)
          x: Bernoulli(logits=MLP(z, [64]))
        <BLANKLINE>

    """
    network = MLP("z", hidden)
    likelihoods: dict[str, Callable[[], dict[str, Node | MLP]]] = {
        "normal": lambda: {"x": Normal(loc=network, scale=1)},
        "diagonal": lambda: {"h": network, "x": Normal(loc=Linear("h"), scale=Linear("h"))},
        "bernoulli": lambda: {"x": Bernoulli(logits=network)},
    }
    return Spec(model={"z": Normal(latent, loc=0, scale=1), **_chosen(likelihoods, likelihood, "likelihood")})


def _chosen(table: Mapping[str, Callable[[], T]], word: str, option: str) -> T:
    if word not in table:
        hint = nearest(str(word), table) or ";"
        raise SpecError(f"{option} {word!r} is not known{hint} known: {', '.join(table)}", word=str(word))
    return table[word]()
