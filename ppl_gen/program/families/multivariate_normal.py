"""The normal with a full covariance, kept as its Cholesky factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import register_kl

from ppl_gen.program.families import missing_normal
from ppl_gen.program.families.base import (
    Family,
    LazyDistribution,
    Site,
    Sizes,
    about_middle,
    as_rows,
    at_least_tiny,
    is_outer,
    outer_log_prob,
    standard_units,
)
from ppl_gen.program.families.conjugate import with_inverse_wishart, with_normal
from ppl_gen.program.families.normal import ECM_CYCLES, LOG_2PI

# Dimensions from which x·L⁻¹ takes the place of the products x_i x_j, in standard units too: the products are
# cheaper, the M-step needs them anyway, but a row's log p is off by up to 3 eps |x|²/λ_min(LLᵀ), at the variance
# floor 1e-6 nats.
WHITEN_FROM = 64


class CholeskyNormal(LazyDistribution):
    """N(loc, L Lᵀ), parameters (*batch, D) and (*batch, D, D)."""

    has_rsample = True
    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale_tril = loc, scale_tril
        batch = torch.broadcast_shapes(loc.shape[:-1], scale_tril.shape[:-2])
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The location over the whole batch."""
        return self.loc.expand(self._batch_shape + self._event_shape)

    @property
    def variance(self) -> Tensor:
        """The covariance's diagonal over the whole batch."""
        return (self.scale_tril**2).sum(-1).expand(self._batch_shape + self._event_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Loc + L·ε."""
        noise = torch.randn(self._draw_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log N(x; loc, L Lᵀ)."""
        if self._validate_args:
            self._validate_sample(value)
        rows, D = value.shape[:-1], value.shape[-1]
        if self.seen is not None:
            return self._over_batch(self._of_seen(value), rows)
        own = torch.broadcast_shapes(self.loc.shape[:-1], self.scale_tril.shape[:-2])
        if len(own) <= 1 or not is_outer(own, rows):
            log_prob = self._row_by_row(value)
        elif D < WHITEN_FROM and standard_units():
            log_prob = outer_log_prob(self._natural(), quadratic_features(as_rows(value)))
        else:
            log_prob = self._whitened(*about_middle(self.loc, as_rows(value)))
        return self._over_batch(log_prob, rows)

    def given_seen(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | seen cells] (…, N, D) and Cov[x | seen cells] (…, N, D, D), of rows (N, D)."""
        if self._by_row():
            expected, left = missing_normal.completed_by_row(self.loc, self.scale_tril, value, self.seen)
            return expected, left
        expected, left = missing_normal.completed(*self._one_plate(), as_rows(value), self.seen)
        return expected, self.seen.of_rows(left, -3)

    def sample_rest(self, value: Tensor) -> Tensor:
        """Rows (N, D) with the cells that are not seen drawn given those that are."""
        expected, left = self.given_seen(value)
        return expected + missing_normal.noise_of(left)

    def _by_row(self) -> bool:
        """Whether the parameters differ from row to row."""
        own = torch.broadcast_shapes(self.loc.shape[:-1], self.scale_tril.shape[:-2])
        return len(own) > 0 and own[-1] != 1

    def _one_plate(self) -> tuple[Tensor, Tensor]:
        """Location and factor without the plate's axis of size 1."""
        own = torch.broadcast_shapes(self.loc.shape[:-1], self.scale_tril.shape[:-2])
        D = self.loc.shape[-1]
        loc, factor = self.loc.expand((*own, D)), self.scale_tril.expand((*own, D, D))
        return (loc.squeeze(-2), factor.squeeze(-3)) if len(own) else (loc, factor)

    def _of_seen(self, value: Tensor) -> Tensor:
        if self._by_row():
            return missing_normal.log_density_by_row(self.loc, self.scale_tril, value, self.seen)
        return missing_normal.log_density(*self._one_plate(), as_rows(value), self.seen)

    def _row_by_row(self, value: Tensor) -> Tensor:
        apart = (value - self.loc).unsqueeze(-1)
        batch = torch.broadcast_shapes(apart.shape[:-2], self.scale_tril.shape[:-2])
        factor = self.scale_tril.expand(batch + self.scale_tril.shape[-2:])
        standard = torch.linalg.solve_triangular(factor, apart.expand(batch + apart.shape[-2:]), upper=False)
        return self._log_constant() - 0.5 * (standard**2).sum((-2, -1))

    def _log_constant(self) -> Tensor:
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -log_det - 0.5 * self.loc.shape[-1] * LOG_2PI

    def _inverse_factor(self, loc: Tensor) -> tuple[Tensor, Tensor]:
        """L⁻¹ (*batch, D, D) and L⁻¹loc (*batch, D)."""
        eye = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        inverse = torch.linalg.solve_triangular(self.scale_tril, eye.expand_as(self.scale_tril), upper=False)
        return inverse, (inverse @ loc.unsqueeze(-1)).squeeze(-1)

    def _natural(self) -> Tensor:
        inverse, centre = self._inverse_factor(self.loc)
        precision = inverse.mT @ inverse
        linear = (inverse.mT @ centre.unsqueeze(-1)).squeeze(-1)
        constant = self._log_constant() - 0.5 * (centre**2).sum(-1)
        D = precision.shape[-1]
        halved = precision.diagonal(dim1=-2, dim2=-1)
        rows, columns = torch.tril_indices(D, D, device=precision.device)
        # The product of two different dimensions stands once in the features and twice in the quadratic form.
        coefficients = torch.diag_embed(0.5 * halved) - precision
        quadratic = coefficients.flatten(-2).index_select(-1, rows * D + columns)
        own = torch.broadcast_shapes(linear.shape[:-1], quadratic.shape[:-1])
        parts = [constant.unsqueeze(-1), linear, quadratic]
        return torch.cat([part.expand((*own, part.shape[-1])) for part in parts], -1)

    def _whitened(self, loc: Tensor, value: Tensor) -> Tensor:
        inverse, centre = self._inverse_factor(loc)
        D = value.shape[-1]
        standard = (inverse.reshape(-1, D) @ value.T).reshape(*inverse.shape[:-3], D, value.shape[0])
        apart = standard - centre.reshape(*centre.shape[:-2], D).unsqueeze(-1)
        return self._log_constant() - 0.5 * (apart**2).sum(-2)


@register_kl(CholeskyNormal, CholeskyNormal)  # type: ignore[untyped-decorator]
def _kl(p: CholeskyNormal, q: CholeskyNormal) -> Tensor:
    def expanded(normal: CholeskyNormal) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(normal.loc, scale_tril=normal.scale_tril)

    kl = torch.distributions.kl_divergence(expanded(p), expanded(q))
    return kl.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape, kl.shape))


def quadratic_features(value: Tensor) -> Tensor:
    """(N, D) → (1 + D + D(D+1)/2, N): 1, x_i, x_i x_j for j ≤ i."""
    columns = value.T  # (D, N)
    products = [columns[i : i + 1] * columns[: i + 1] for i in range(len(columns))]
    return torch.cat([torch.ones_like(columns[:1]), columns, *products])


class MultivariateNormalFamily(Family):
    """MultivariateNormal(dim, loc, cov) or (…, scale_tril): F7.3 in closed form, each class or tied."""

    reparameterised = True
    joined = True
    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {"loc": ("Normal",), "cov": ("InverseWishart",)}

    def axes(self, parameter: str, sizes: Sizes) -> tuple[int, ...]:
        """(D,) for the location, the packed lower triangle for a matrix."""
        return (sizes.width,) if parameter == "loc" else (sizes.width * (sizes.width + 1) // 2,)

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> CholeskyNormal:
        """N(loc, L Lᵀ)."""
        loc = working["loc"].expand((*working["loc"].shape[:-1], sizes.width))
        return CholeskyNormal(loc, working["cov" if "cov" in working else "scale_tril"])

    def statistics(self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Any = None) -> Tensor:
        """1, x, the lower triangle of x xᵀ."""
        return quadratic_features(value)

    def expected_statistics(
        self,
        weights: Tensor,
        value: Tensor,
        sizes: Sizes,
        *,
        seen: Any = None,
        current: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Σ w Φ(x), of missing cells what the seen ones say of them under the current parameters."""
        if seen is None or current is None:
            return super().expected_statistics(weights, value, sizes)
        D, own = sizes.width, weights.shape[:-1]
        factor = current["cov" if "cov" in current else "scale_tril"]
        loc, factor = current["loc"].expand((*own, D)), factor.expand((*own, D, D))
        return missing_normal.expected_statistics(weights, loc, factor, value, seen)

    def closed_form(self, partly_fixed: frozenset[str], shared: frozenset[str]) -> str | None:
        """A location with some fixed entries, or one for all dimensions, couples with the covariance."""
        if partly_fixed:
            return f"{', '.join(sorted(partly_fixed))} of a MultivariateNormal is fixed in part"
        return f"{', '.join(sorted(shared))} is one value for all dimensions" if shared else None

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted mean, then weighted scatter about it; in turns where the two do not separate."""
        D = site.sizes.width
        name = "cov" if "cov" in current else "scale_tril"
        n, first, packed = statistics.split([1, D, D * (D + 1) // 2], -1)
        second = _symmetric(packed, D)
        loc, factor = current["loc"], current[name]
        regular = torch.ones_like(statistics.sum(), dtype=torch.bool)
        learned = "loc" not in site.fixed and "loc" not in site.priors
        nested = site.nested(name, "loc")
        separate = name in site.fixed or (nested and "loc" not in site.priors)
        for _ in range(1 if separate else ECM_CYCLES):
            if "loc" not in site.fixed:
                loc = self._locate(n, first, loc, factor, name, site)
            if name not in site.fixed:
                middle = site.spread(loc, "loc")
                scatter = second - first.unsqueeze(-1) * middle.unsqueeze(-2)
                if not (learned and nested):  # about a mean of these very rows the rest is 0
                    left = first - middle * n
                    scatter = scatter - middle.unsqueeze(-1) * left.unsqueeze(-2)
                scatter = site.gather(scatter, name)
                count = site.gather(n, name).unsqueeze(-1)
                scatter, count = with_inverse_wishart(site, name, scatter, count)
                if learned:
                    scatter = apart_where_constant(scatter, jitter)
                factor, regular = self._factorise(scatter, count, factor, floor, jitter)
        return {"loc": loc, name: factor}, regular

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """The columns' own, uncorrelated."""
        factor = torch.diag_embed(spread)
        return {"loc": centre, "cov": factor, "scale_tril": factor}

    def _locate(self, n: Tensor, first: Tensor, loc: Tensor, factor: Tensor, name: str, site: Site) -> Tensor:
        if site.nested(name, "loc") and "loc" not in site.priors:
            count = site.gather(n, "loc")
            return torch.where(count > 0, site.gather(first, "loc") / at_least_tiny(count), loc)
        eye = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        precision = site.spread(inverse.mT @ inverse, name)
        weighted = site.gather((precision @ first.unsqueeze(-1)).squeeze(-1), "loc")
        total = site.gather(precision * n.unsqueeze(-1), "loc")
        weighted, more = with_normal(site, "loc", weighted, torch.zeros_like(weighted))
        solved, info = torch.linalg.solve_ex(total + torch.diag_embed(more), weighted.unsqueeze(-1))
        return torch.where((info == 0).unsqueeze(-1), solved.squeeze(-1), loc)

    def _factorise(
        self, scatter: Tensor, count: Tensor, factor: Tensor, floor: Tensor, jitter: Tensor
    ) -> tuple[Tensor, Tensor]:
        covariance = scatter / at_least_tiny(count) + torch.diag_embed(jitter)
        new, info = torch.linalg.cholesky_ex(covariance)
        least = new.diagonal(dim1=-2, dim2=-1) ** 2
        sound = (info == 0) & (least >= floor).all(-1)
        empty = (count <= 0).squeeze(-1).squeeze(-1)
        return torch.where((sound & ~empty)[..., None, None], new, factor), (sound | empty).all()

    def rescale(self, working: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Loc and L in units of `scale`, from `shift`."""
        name, loc = "cov" if "cov" in working else "scale_tril", working["loc"]
        cells = loc.shape[-1]  # 1 where it is one value for all dimensions, which then share shift and unit
        return {
            "loc": (loc - shift[..., :cells]) / scale[..., :cells],
            name: working[name] / scale.unsqueeze(-1),
        }


def apart_where_constant(scatter: Tensor, jitter: Tensor) -> Tensor:
    """The scatter (…, D, D) without the columns that are constant in the data, which have jitter: all of theirs.

    What is seen of them is 0 already; what is missing would be their own variance, growing by the jitter.
    """
    varies = (jitter == 0).to(scatter)
    return scatter * varies.unsqueeze(-1) * varies


def _symmetric(packed: Tensor, D: int) -> Tensor:
    """The lower triangle (…, D(D+1)/2) → the symmetric matrix (…, D, D)."""
    rows, columns = torch.tril_indices(D, D, device=packed.device)
    flat = torch.zeros((*packed.shape[:-1], D * D), dtype=packed.dtype, device=packed.device)
    lower = flat.index_copy(-1, rows * D + columns, packed).unflatten(-1, (D, D))
    return lower + lower.tril(-1).mT
