"""`Conv` as a layer: from an image to numbers, and from numbers to an image.

Both keep their learned numbers as an `MLPLayer` does, weights and biases in the order in which values pass.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_gen.declare.images import Image, image_of, sizes_between
from ppl_gen.declare.terms import Conv
from ppl_gen.errors import SpecError
from ppl_gen.program.layers import ACTIVATIONS, MLPLayer, build, caution, uniform
from ppl_gen.program.scope import Inputs, Lookup, Parent, Scope, Target, Values, affine


class ConvEncoder(MLPLayer):
    """Strided convolutions of one image; `target` adds a linear layer, without it the last image is the output.

    Reals enter counted from their channel's mean in units of its spread: one for all its pixels, or the same edge
    would be another one elsewhere.
    """

    def __init__(self, term: Conv, target: Target | None, scope: Scope, intercept: bool = True) -> None:
        nn.Module.__init__(self)
        (name,) = term.of
        parent = scope.parents[name]
        image = image_of(parent.shape)
        assert image is not None
        self.term, self.image, self.activation = term, image, ACTIVATIONS[term.activation]
        self.inputs = Inputs((name,), Scope({name: _by_channel(parent, image)}), network=True)
        self.lookup, self.axes = Lookup((), scope), None if target is None else target.axes
        self.marks = parent.width * parent.holes
        planes = self.inputs.width // math.prod(image[1:])
        size = sizes_between(term, image, f"a Conv of '{name}'" if target is None else target.name)[-1]
        self.width = term.channels[-1] * math.prod(size)
        self.n_hidden = len(term.channels)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise([planes, *term.channels]):
            fan_in = before * term.kernel**2
            self.weights.append(uniform((after, before, term.kernel, term.kernel), fan_in))
            self.biases.append(uniform((after,), fan_in))
        if target is not None:
            out = math.prod(target.axes)
            self.weights.append(uniform((out, self.width), self.width * caution(target) ** 2))
            if intercept:
                self.biases.append(uniform((out,), self.width))

    def hidden(self, values: Values) -> Tensor:
        """The last convolution's image, activated and flattened: (*batch, width)."""
        (entering,) = self.inputs(values, self.weights[0].dtype)
        lead = entering.shape[:-1]
        out = self._planes(entering.reshape(-1, entering.shape[-1]))
        for i in range(self.n_hidden):  # a slice of a ParameterList is a copy without gradients
            convolved = F.conv2d(out, self.weights[i], self.biases[i], self.term.stride, self.term.padding)
            out = self.activation(convolved)
        return out.reshape(*lead, self.width)

    def forward(self, values: Values) -> Tensor:
        """The output layer's predictor, (*batch, *axes)."""
        hidden = self.hidden(values)
        if self.axes is None:
            return hidden
        bias = self.biases[-1] if len(self.biases) > self.n_hidden else None
        return affine(self.weights[-1], bias, [hidden]).unflatten(-1, self.axes)

    def _planes(self, flat: Tensor) -> Tensor:
        """(B, cells) as images; a category's levels, and the marks of the seen cells, as channels of their own."""
        C, H, W = self.image
        cells = flat.shape[-1] - self.marks
        levels = cells // (C * H * W)
        image = flat[:, :cells].reshape(-1, C, H, W, levels).movedim(-1, 2).reshape(-1, C * levels, H, W)
        if not self.marks:
            return image
        return torch.cat([image, flat[:, cells:].reshape(-1, C, H, W)], 1)


class ConvDecoder(MLPLayer):
    """A linear layer to the first image, then transposed convolutions up to the node's own image."""

    def __init__(self, term: Conv, target: Target, scope: Scope, intercept: bool = True) -> None:
        nn.Module.__init__(self)
        image = image_of(target.shape)
        if image is None or target.axes[0] != math.prod(image):
            raise SpecError(
                f"{target.name}: {term} gives an image, a number a cell, where "
                f"{' × '.join(map(str, target.axes))} numbers are needed",
                word="Conv",
            )
        self.term, self.image, self.activation = term, image, ACTIVATIONS[term.activation]
        self.inputs, self.lookup = Inputs(term.of, scope, network=True), Lookup((), scope)
        self.own, self.axes = target.axes, None
        self.sizes = sizes_between(term, image, target.name)[::-1]
        self.levels = math.prod(target.axes[1:])
        self.n_hidden = len(term.channels)
        first = term.channels[0] * math.prod(self.sizes[0])
        self.weights = nn.ParameterList([uniform((first, self.inputs.width), self.inputs.width)])
        self.biases = nn.ParameterList([uniform((first,), self.inputs.width)])
        for before, after in pairwise([*term.channels, image[0] * self.levels]):
            fan_in = after * term.kernel**2  # as torch counts it
            self.weights.append(uniform((before, after, term.kernel, term.kernel), fan_in))
            self.biases.append(uniform((after,), fan_in))
        with torch.no_grad():
            self.weights[-1].div_(caution(target))
        if not intercept:
            self.biases = self.biases[:-1]

    def begin_at(self, means: Tensor) -> None:
        """Add a mean by cell to the intercept, which has one number a channel: its cells' mean."""
        if len(self.biases) == len(self.weights) and self.levels == 1:
            self.biases[-1] += means.reshape(self.image[0], -1).mean(1)

    def forward(self, values: Values) -> Tensor:
        """The predictor of every cell, (*batch, *axes)."""
        u = affine(self.weights[0], self.biases[0], self.inputs(values, self.weights[0].dtype))
        lead, term = u.shape[:-1], self.term
        out = u.reshape(-1, term.channels[0], *self.sizes[0])
        for i, (before, after) in enumerate(pairwise(self.sizes), start=1):
            reached = [(n - 1) * term.stride - 2 * term.padding + term.kernel for n in before]
            rest = (after[0] - reached[0], after[1] - reached[1])  # pixels that the way down had left out
            bias = self.biases[i] if i < len(self.biases) else None
            out = F.conv_transpose2d(
                self.activation(out), self.weights[i], bias, term.stride, term.padding, rest
            )
        C, H, W = self.image
        cells = out.reshape(-1, C, self.levels, H, W).movedim(2, -1)
        return cells.reshape(*lead, *self.own)


def _by_channel(parent: Parent, image: Image) -> Parent:
    """The parent with one mean and one spread for all cells of a channel."""
    if not parent.centre:
        return parent
    centre = torch.tensor(parent.centre, dtype=torch.float64).reshape(image[0], -1)
    spread = torch.tensor(parent.spread, dtype=torch.float64).reshape(image[0], -1)
    middle = centre.mean(1, keepdim=True)
    unit = (spread.square() + (centre - middle).square()).mean(1, keepdim=True).sqrt()
    spreads = (middle.expand_as(centre).reshape(-1), unit.expand_as(centre).reshape(-1))
    return replace(parent, centre=tuple(spreads[0].tolist()), spread=tuple(spreads[1].tolist()))


@build.register
def _(term: Conv, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:
    if any(image_of(scope.parents[name].shape) for name in term.of):
        return ConvEncoder(term, target, scope, intercept)
    return ConvDecoder(term, target, scope, intercept)
