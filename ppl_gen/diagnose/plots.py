"""Pictures of a fit, as Figure objects that own no window: `plot_…(fit).savefig("fit.png")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from ppl_gen.data.table import Table
from ppl_gen.diagnose.images import plot_reconstructions
from ppl_gen.errors import FitError
from ppl_gen.program.families.multivariate_normal import CholeskyNormal
from ppl_gen.program.program import Program
from ppl_gen.results.fit import Fit
from ppl_gen.results.queries import class_probabilities, discrete_latents
from ppl_gen.results.rows import read_rows, seeded

__all__ = ["plot_classes", "plot_history", "plot_reconstructions"]

Array = NDArray[Any]

# Okabe and Ito's colours, told apart by colour-blind readers too; markers tell classes apart in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "os^Dv<>P"
RADII = {1: "-", 2: "--"}  # standard deviations, and how their ellipse is drawn
DRAWS = 100  # of a row's continuous latents, where its class probabilities depend on them
SEED = 0


def plot_classes(fit: Fit, data: Any = None, *, columns: Sequence[int | str] = (0, 1)) -> Figure:
    """The rows in the plane of two columns, coloured by class, with each class's 1- and 2-sd ellipses.

    An ellipse holds the points x with (x − μ_k)ᵀ Σ_k⁻¹ (x − μ_k) = r², for r = 1 and 2, where μ_k and Σ_k are
    the class's mean and covariance in these two columns. The legend has each class's share of the rows: the
    mean of its probability given a row (F7.1).

    Args:
        fit: of a model with one discrete latent, on which alone a normal node of two or more columns depends.
        data: rows to show, anything `fit` takes; default the training rows.
        columns: the two columns to show, by position or by name.

    Raises:
        FitError: the model has no such latent or node, or the fit was loaded and `data` is not given.

    Example:
        >>> import numpy as np
        >>> from ppl_gen import fit, gaussian_mixture
        >>> x = np.random.default_rng(0).normal(size=(40, 2)) + np.repeat([[0, 0], [9, 9]], 20, axis=0)
        >>> figure = plot_classes(fit(gaussian_mixture(2), {"x": x}))
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['class 0, 50 %', 'class 1, 50 %', '1 sd', '2 sd']

    """
    program = fit.program
    latent, leaf = _class_and_leaf(program)
    table = _rows_to_show(fit, data)
    names = program.schema.column_names(leaf)
    chosen = [_position(column, names) for column in columns]
    if len(set(chosen)) != 2:
        raise FitError(f"columns must be two different ones of {', '.join(names)}, not {columns!r}")
    probabilities = class_probabilities(program, table, draws=DRAWS, seed=SEED)[latent]  # (N, K)
    means, covariances = _components(program, latent, leaf)
    figure, axes = _figure()
    _scatter(axes, table.arrays[leaf][:, chosen], probabilities, _class_names(program, latent))
    for k, colour in enumerate(_colours(len(means))):
        _ellipses(axes, means[k, chosen], covariances[k][np.ix_(chosen, chosen)], colour)
    for radius, style in RADII.items():
        axes.plot([], [], style, color="0.3", label=f"{radius} sd")
    axes.set(xlabel=names[chosen[0]], ylabel=names[chosen[1]])
    figure.legend(loc="outside right upper", frameon=False)  # beside the axes, where it covers no row
    return figure


def plot_history(fit: Fit) -> Figure:
    """The objective after each step of EM (its log-likelihood) or in each epoch of SVI (its ELBO), in nats.

    Args:
        fit: any fit.

    Raises:
        FitError: the history is empty, as after an interruption within the first epoch.

    Example:
        >>> import numpy as np
        >>> from ppl_gen import fit, gaussian_mixture
        >>> x = np.random.default_rng(0).normal(size=(40, 2))
        >>> plot_history(fit(gaussian_mixture(2), {"x": x})).axes[0].get_ylabel()
        'log-likelihood (nats)'

    """
    history = fit.history
    if not history.size:
        raise FitError(f"there is no history to show: {fit.status.value}")
    by_em = fit.algorithm["name"] == "EM"
    # EM's first value is that of the start, after no step; an epoch's is the mean over its steps.
    steps = np.arange(len(history)) + (0 if by_em else 1)
    unit, objective = ("step of EM", "log-likelihood") if by_em else ("epoch of SVI", "ELBO")
    figure, axes = _figure()
    axes.plot(steps, history, color=COLOURS[0], marker="." if len(history) < 100 else None)
    axes.set(xlabel=unit, ylabel=f"{objective} (nats)")
    status = fit.status.name.lower().replace("_", " ")
    axes.set_title(f"{status}, {objective} {history[-1]:,.2f}".replace("-", "−"), fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.grid(color="0.9")
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.0, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _class_and_leaf(program: Program) -> tuple[str, str]:
    """The discrete latent, and the normal node of two or more columns that depends on it alone."""
    schema, spec = program.schema, program.spec
    latents = discrete_latents(program)
    if len(latents) != 1:
        raise FitError(
            f"plot_classes colours rows by a model's one discrete latent; this model has: {_listed(latents)}"
        )
    wide = [n for n in schema.roles.observed if spec.nodes[n].support == "real" and schema.dims[n] >= 2]
    for name in wide:
        if spec.node_parents(name) == latents:
            return latents[0], name
    if wide:
        parents = _listed(spec.node_parents(wide[0]))
        reason = f"{wide[0]!r} depends on {parents}, where ellipses need it to depend on {latents[0]!r} alone"
    else:
        reason = f"the observed nodes are {_listed(schema.roles.observed)}"
    raise FitError(f"plot_classes draws a normal node of two or more columns, given the class; {reason}")


def _rows_to_show(fit: Fit, data: Any) -> Table:
    if data is not None:
        return read_rows(fit.program, data)
    if fit.data is None:
        raise FitError("a loaded fit has no rows of its own: pass them, plot_classes(fit, data)")
    return fit.data


def _position(column: int | str, names: tuple[str, ...]) -> int:
    if column in names:
        return names.index(str(column))
    if isinstance(column, int) and 0 <= column < len(names):
        return column
    raise FitError(f"no column {column!r}; there are {_listed(names)}, by name or counted from 0")


def _components(program: Program, latent: str, leaf: str) -> tuple[Array, Array]:
    """Mean (K, D) and covariance (K, D, D) of every class."""
    draw = program.generative.draws[latent]
    values = {latent: draw.family.support(draw.sizes).to(program.device)}
    with seeded(program, SEED):
        component = program.generative.distribution(leaf, values).expand([len(values[latent])])
    means = component.mean.cpu().numpy()
    if isinstance(component, CholeskyNormal):
        factors = component.scale_tril.cpu().numpy()
        return means, np.broadcast_to(factors @ factors.swapaxes(-1, -2), (*means.shape, means.shape[-1]))
    return means, component.variance.cpu().numpy()[..., None] * np.eye(means.shape[-1])


def _scatter(axes: Axes, points: Array, probabilities: Array, names: list[str]) -> None:
    """Points (N, 2), each in the colour of its most probable class."""
    codes, shares = probabilities.argmax(1), probabilities.mean(0)
    crowd = 500 / max(
        len(points), 1
    )  # the more rows, the smaller and fainter each: they must not hide others
    size, alpha = np.clip(24 * crowd, 4, 24), np.clip(3 * crowd, 0.1, 0.6)
    for k, colour in enumerate(_colours(len(names))):
        x, y = points[codes == k].T
        marker, label = MARKERS[k % len(MARKERS)], f"{names[k]}, {100 * shares[k]:.0f} %"
        axes.scatter(x, y, s=size, color=colour, marker=marker, alpha=alpha, linewidths=0)
        axes.plot(
            [], [], marker, color=colour, markersize=5, label=label
        )  # for the legend: full size and ink


def _class_names(program: Program, latent: str) -> list[str]:
    draw = program.generative.draws[latent]
    codes = draw.family.support(draw.sizes).long().tolist()
    return [f"class {code if not isinstance(code, list) else tuple(code)}" for code in codes]


def _ellipses(axes: Axes, mean: Array, covariance: Array, colour: Any) -> None:
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)])  # (2, points)
    halo = [withStroke(linewidth=3.5, foreground="white", alpha=0.8)]  # to be seen on a crowd of one colour
    for radius, style in RADII.items():
        x, y = mean[:, None] + radius * np.linalg.cholesky(covariance) @ circle
        axes.plot(x, y, style, color=colour, linewidth=1.6, path_effects=halo)
    axes.plot(*mean, "+", color=colour, markersize=9, markeredgewidth=1.8, path_effects=halo)


def _colours(count: int) -> list[Any]:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return list(matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
