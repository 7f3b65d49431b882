"""Priors on learned parameters: `By(z, prior=Normal(loc=0, scale=10))`.

A prior is one of Pyro's distributions (and `InverseWishart`) with numbers as arguments. It stands on the
parameter's natural scale, and its values must lie where the parameter's do. `Normal`, `StudentT` and the like are
nodes too: `prior_option` says how the two meet.
"""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY
from typing import ClassVar

from ppl_gen.declare.declared import Declared, declared
from ppl_gen.declare.quantities import Nested, Positive, PositiveMatrix, PositiveNumber, Real


class Prior(Declared):
    """A distribution of a parameter before there are data; its arguments are numbers, by keyword.

    A number serves every entry of the parameter; a list is broadcast onto the parameter's table from the last
    axis on, (parents…, dim, the parameter's own axes).
    """

    # The constraints of the parameters it fits.
    fits: ClassVar[tuple[str, ...]] = ()

    def arguments(self) -> dict[str, Nested]:
        """Its arguments by name.

        Example:
            >>> Normal(loc=0, scale=[1, 2]).arguments()
            {'loc': 0, 'scale': (1, 2)}

        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


@declared
class Normal(Prior):
    """Normal, of a real parameter: a location, a weight, a logit.

    Args:
        loc: mean.
        scale: standard deviation.

    Example:
        >>> from ppl_gen import By
        >>> By("z", prior=Normal(loc=0, scale=10))
        By(z, prior=Normal(loc=0, scale=10))

    """

    _: KW_ONLY
    loc: Real
    scale: Positive
    fits: ClassVar[tuple[str, ...]] = ("real", "ordered")


@declared
class StudentT(Prior):
    """Student's t, of a real parameter: heavier tails than the normal's.

    Args:
        df: degrees of freedom.
        loc: location.
        scale: scale.

    """

    _: KW_ONLY
    df: Positive
    loc: Real
    scale: Positive
    fits: ClassVar[tuple[str, ...]] = ("real", "ordered")


@declared
class LogNormal(Prior):
    """Log-normal, of a positive parameter.

    Args:
        loc: mean of the logarithm.
        scale: standard deviation of the logarithm.

    """

    _: KW_ONLY
    loc: Real
    scale: Positive
    fits: ClassVar[tuple[str, ...]] = ("positive",)


@declared
class Gamma(Prior):
    """Gamma, of a positive parameter; conjugate to the rate of a Poisson and of an Exponential.

    Args:
        concentration: shape.
        rate: inverse scale; the mean is concentration/rate.

    """

    _: KW_ONLY
    concentration: Positive
    rate: Positive
    fits: ClassVar[tuple[str, ...]] = ("positive",)


@declared
class Exponential(Prior):
    """Exponential, of a positive parameter: Gamma(concentration=1, rate).

    Args:
        rate: one over the mean.

    """

    _: KW_ONLY
    rate: Positive
    fits: ClassVar[tuple[str, ...]] = ("positive",)


@declared
class HalfNormal(Prior):
    """The absolute value of a normal around 0, of a positive parameter such as a standard deviation.

    Args:
        scale: of the normal.

    """

    _: KW_ONLY
    scale: Positive
    fits: ClassVar[tuple[str, ...]] = ("positive",)


@declared
class HalfCauchy(Prior):
    """The absolute value of a Cauchy variable around 0, of a positive parameter such as a standard deviation.

    Args:
        scale: its median.

    """

    _: KW_ONLY
    scale: Positive
    fits: ClassVar[tuple[str, ...]] = ("positive",)


@declared
class InverseGamma(Prior):
    """Inverse gamma, of a positive parameter.

    Put on the `scale` of a node it is the prior of scale², the variance: that is where it is conjugate to a normal,
    and what "an inverse gamma on the variance" means. Elsewhere it is the prior of the parameter itself.

    Args:
        concentration: shape.
        rate: the numerator of the exponent: p(v) ∝ v^(−concentration−1) exp(−rate/v).

    Example:
        >>> from ppl_gen import By
        >>> By("z", prior=InverseGamma(concentration=2, rate=0.5))
        By(z, prior=InverseGamma(concentration=2, rate=0.5))

    """

    _: KW_ONLY
    concentration: Positive
    rate: Positive
    fits: ClassVar[tuple[str, ...]] = ("positive",)


@declared
class Beta(Prior):
    """Beta, of a probability; conjugate to a Bernoulli's and a Binomial's.

    Args:
        concentration1: one more than the successes it is worth.
        concentration0: one more than the failures.

    """

    _: KW_ONLY
    concentration1: Positive
    concentration0: Positive
    fits: ClassVar[tuple[str, ...]] = ("unit_interval",)


@declared
class Dirichlet(Prior):
    """Dirichlet, of the probabilities of categories; conjugate to a Categorical's.

    Args:
        concentration: one more than the observations each category is worth; a number for all, or a list.
            Below 1 the density has no bound where a category empties, and a maximum may lie there.

    Example:
        >>> from ppl_gen import Categorical, Free
        >>> Categorical(3, probs=Free(prior=Dirichlet(concentration=2)))
        Categorical(3, probs=Free(prior=Dirichlet(concentration=2)))

    """

    _: KW_ONLY
    concentration: Positive
    fits: ClassVar[tuple[str, ...]] = ("simplex",)


@declared
class InverseWishart(Prior):
    """Inverse Wishart, of a covariance: p(Σ) ∝ |Σ|^(−(df+D+1)/2) exp(−½ tr(scale·Σ⁻¹)).

    Args:
        df: degrees of freedom, more than D − 1.
        scale: positive definite (D, D), or a number c for c·I; the mode is scale/(df + D + 1).

    """

    _: KW_ONLY
    df: PositiveNumber
    scale: PositiveMatrix
    fits: ClassVar[tuple[str, ...]] = ("covariance",)


PRIORS: dict[str, type[Prior]] = {
    cls.__name__: cls
    for cls in (
        *(Normal, StudentT, LogNormal, Gamma, Exponential, HalfNormal, HalfCauchy),
        *(InverseGamma, Beta, Dirichlet, InverseWishart),
    )
}
