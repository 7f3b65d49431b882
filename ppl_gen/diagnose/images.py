"""Images: rows of the data beside what the model makes of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.errors import FitError
from ppl_gen.program.program import Program
from ppl_gen.results.draws import latents_given
from ppl_gen.results.fit import Fit
from ppl_gen.results.queries import exact_program, repeated
from ppl_gen.results.rows import Rows, at_least_one, read_rows, seeded

Array = NDArray[Any]

DRAWS = 100  # draws of a row's latents that its reconstruction averages over
SEED = 0


def plot_reconstructions(fit: Fit, rows: Any, *, shape: tuple[int, ...] | None = None, n: int = 10) -> Figure:
    """Images: rows of the data, their reconstructions, and what the model makes from the prior.

    A reconstruction is E[x′ | x_d], the mean of p(x | z) averaged over draws of z given the row; an image
    from the prior is the mean of p(x | z) at one draw z ~ p(z). Neither has the noise of p(x | z) added. A
    model with Inputs is given those of the rows for both.

    Args:
        fit: of a model with latents and one observed node of real, count or 0/1 cells.
        rows: anything `fit` takes; the first n are shown.
        shape: (height, width) of an image; default the node's declared sizes, else a square.
        n: images in a row of the picture.

    Raises:
        FitError: the model has no latent or no such node, or its width is not that of an image.

    Example:
        >>> import numpy as np
        >>> from ppl_gen import SVI, fit, vae
        >>> x = np.random.default_rng(0).random((50, 16))
        >>> figure = plot_reconstructions(fit(vae(2, (8,)), x, SVI(epochs=1)), x, n=4)
        >>> len(figure.axes), figure.axes[0].images[0].get_array().shape
        (12, (4, 4))

    """
    program = exact_program(fit.program)
    if not program.schema.roles.latent:
        raise FitError("the model has no latent, so there is nothing to reconstruct from")
    leaf = _image_leaf(program)
    height, width = _image_shape(program, leaf, shape)
    count = at_least_one(n, "n")
    table = read_rows(program, rows)
    shown = program.tensors({name: array[:count] for name, array in table.arrays.items()})
    with seeded(program, SEED):
        made = {
            "data": shown[leaf],
            "reconstruction": _reconstructed(program, shown, leaf),
            "from the prior": _from_the_prior(program, shown, leaf),
        }
    images = {label: own.cpu().numpy().reshape(-1, height, width) for label, own in made.items()}
    return _image_grid(images)


def _image_leaf(program: Program) -> str:
    observed = program.schema.roles.observed
    found = [name for name in observed if program.spec.nodes[name].support != "category"]
    if len(found) != 1:
        raise FitError(
            "plot_reconstructions shows the one observed node of real, count or 0/1 cells; "
            f"the observed nodes are {', '.join(observed)}"
        )
    return found[0]


def _image_shape(program: Program, leaf: str, shape: tuple[int, ...] | None) -> tuple[int, int]:
    width, declared = program.schema.dims[leaf], program.spec.nodes[leaf].dim
    side = math.isqrt(width)
    wanted = shape or (declared if isinstance(declared, tuple) else (side, side))
    sizes = tuple(size for size in wanted if size != 1) if len(wanted) > 2 else tuple(wanted)
    if len(sizes) != 2 or math.prod(sizes) != width:
        raise FitError(
            f"{leaf!r} has {width} cells, which are no image of shape {tuple(wanted)}: "
            "pass shape=(height, width)"
        )
    return sizes[0], sizes[1]


def _reconstructed(program: Program, rows: Rows, leaf: str) -> Tensor:
    """E[x′ | x_d] (N, D) over DRAWS draws of the latents."""
    values = repeated({name: own for name, own in rows.items() if name != leaf}, DRAWS)
    values |= latents_given(program, rows, DRAWS)
    mean: Tensor = program.generative.distribution(leaf, values).mean  # (S·N, D)
    return mean.reshape(DRAWS, -1, mean.shape[-1]).mean(0)


def _from_the_prior(program: Program, rows: Rows, leaf: str) -> Tensor:
    """E[x | z] (N, D) at one draw of z ~ p(z) each."""
    inputs = {name: rows[name] for name in program.schema.roles.inputs}
    values = program.model(inputs, n=len(rows[leaf]))
    del values[leaf]
    mean: Tensor = program.generative.distribution(leaf, values).mean
    return mean


def _image_grid(images: dict[str, Array]) -> Figure:
    """One row of the picture for each kind of image, all on one grey scale: that of the data."""
    data = next(iter(images.values()))
    n, ratio = len(data), data.shape[1] / data.shape[2]
    figure = Figure(figsize=(0.8 * n + 1.4, 0.8 * ratio * len(images) + 0.3), dpi=120, layout="constrained")
    grid = figure.subplots(len(images), n, squeeze=False)
    for line, (label, own) in zip(grid, images.items(), strict=True):
        for axes, image in zip(line, own, strict=True):
            axes.imshow(image, cmap="gray_r", vmin=np.nanmin(data), vmax=np.nanmax(data))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure
