"""Convolutions in NumPy, as sums over the pixels of a window: the certificate's own reading of `Conv`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ppl_gen.declare.images import Image, sizes_between
from ppl_gen.declare.terms import Conv

Array = npt.NDArray[Any]
Activation = Callable[[Array], Array]
Numbers = Callable[[str, int], Array]


def convolved(image: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    """y_oij = b_o + Σ_cuv W_ocuv x_c,si+u−p,sj+v−p: images (B, C, H, W), weights (O, C, k, k) → (B, O, H', W').

    Example:
        >>> convolved(np.arange(16.0).reshape(1, 1, 4, 4), np.ones((1, 1, 2, 2)), np.zeros(1), 2, 0)
        array([[[[10., 18.],
                 [42., 50.]]]])

    """
    wide = np.pad(image, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    kernel = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(wide, (kernel, kernel), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (B, C, H', W', k, k)
    return np.asarray(np.einsum("bcijuv,ocuv->boij", windows, weight) + bias[:, None, None])


def transposed(
    image: Array, weight: Array, bias: Array | None, stride: int, padding: int, size: tuple[int, int]
) -> Array:
    """The adjoint: every pixel adds its window W_couv x_cij at (si+u−p, sj+v−p) of an image of `size`.

    Args:
        image: (B, C, h, w).
        weight: (C, O, k, k).
        bias: (O,), or None.
        stride: how far apart the windows of two neighbours lie.
        padding: rows that the first window begins before the image.
        size: height and width of the result.

    Example:
        >>> transposed(np.ones((1, 1, 1, 2)), np.ones((1, 1, 2, 2)), None, 1, 0, (2, 3))
        array([[[[1., 2., 1.],
                 [1., 2., 1.]]]])

    """
    h, w = image.shape[2:]
    kernel = weight.shape[-1]
    room = [max(n, stride * (m - 1) + kernel - padding) + padding for n, m in zip(size, (h, w), strict=True)]
    wide = np.zeros((len(image), weight.shape[1], *room))
    for u in range(kernel):
        for v in range(kernel):
            rows, columns = slice(u, u + stride * h, stride), slice(v, v + stride * w, stride)
            wide[:, :, rows, columns] += np.einsum("bcij,co->boij", image, weight[:, :, u, v])
    own = wide[:, :, padding : padding + size[0], padding : padding + size[1]]
    return np.asarray(own if bias is None else own + bias[:, None, None])


def by_channel(
    centre: Sequence[float], spread: Sequence[float], channels: int
) -> tuple[tuple[float, ...], ...]:
    """Means and standard deviations of cells → those of all cells of a channel together, cell by cell."""
    means, variances = np.reshape(centre, (channels, -1)), np.reshape(spread, (channels, -1)) ** 2
    middle = means.mean(1, keepdims=True)
    unit = np.sqrt((variances + (means - middle) ** 2).mean(1, keepdims=True))
    return tuple(tuple(np.broadcast_to(found, means.shape).ravel().tolist()) for found in (middle, unit))


def encoded(
    term: Conv, image: Image, entering: Array, marks: int, numbers: Numbers, activate: Activation
) -> Array:
    """The last convolution's image, activated and flattened, of what enters (…, cells): (…, width).

    The levels of a category lie innermost and become channels; of the last `marks` numbers, which say what is seen,
    an image is made beside. `numbers` finds the "weights" and "biases" of a layer.
    """
    C, H, W = image
    flat = entering.reshape(-1, entering.shape[-1])
    cells = flat[:, : flat.shape[-1] - marks]
    out = np.moveaxis(cells.reshape(len(flat), C, H, W, -1), -1, 2).reshape(len(flat), -1, H, W)
    if marks:
        out = np.concatenate([out, flat[:, -marks:].reshape(len(flat), C, H, W)], axis=1)
    for i in range(len(term.channels)):
        out = activate(convolved(out, numbers("weights", i), numbers("biases", i), term.stride, term.padding))
    return np.asarray(out.reshape(*entering.shape[:-1], -1))


def decoded(
    term: Conv, image: Image, u: Array, numbers: Numbers, activate: Activation, *, bias: bool
) -> Array:
    """The image that the first layer's output u (…, first) leads to: (…, cells, levels)."""
    sizes = sizes_between(term, image, "")[::-1]
    out = u.reshape(-1, term.channels[0], *sizes[0])
    for i, size in enumerate(sizes[1:], start=1):
        own = numbers("biases", i) if bias or i < len(term.channels) else None
        out = transposed(activate(out), numbers("weights", i), own, term.stride, term.padding, size)
    levels = np.moveaxis(out.reshape(len(out), image[0], -1, *image[1:]), 2, -1)
    return np.asarray(levels.reshape(*u.shape[:-1], -1, levels.shape[-1]))
