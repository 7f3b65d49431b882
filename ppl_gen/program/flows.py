"""The transforms of a flow: Pyro's, over networks that are this module's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pyro.distributions import transforms as pyro_transforms
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, ConditionalDenseNN, DenseNN
from torch import Tensor, nn

from ppl_gen.declare.flow import Flow
from ppl_gen.program.families.flow import FlowDistribution
from ppl_gen.program.families.normal import DiagonalNormal
from ppl_gen.program.layers import ACTIVATIONS

CAUTION = 100.0  # how much smaller than torch's the output weights start: a flow begins near its normal
HALVINGS = 56  # of the interval that a planar transform's inverse lies in


class Transforms(nn.Module):
    """The networks of a flow's transforms, one each, and the flow of a normal.

    Pyro's transform objects remember what they were last called with, so each distribution gets its own.
    """

    def __init__(self, node: Flow, width: int) -> None:
        super().__init__()
        self.kind, self.width = node.kind, width
        self.conditional = node.context.parents() != ()
        context = node.hidden[0] if self.conditional else 0
        made = [self._network(node, context, i) for i in range(node.transforms)]
        self.networks = nn.ModuleList(made).double()
        self.register_buffer("reverse", torch.arange(width - 1, -1, -1))

    def forward(self, base: DiagonalNormal, context: Tensor | None) -> FlowDistribution:
        """The flow of a normal, given the context (*batch, C) of each row."""
        transforms: list[Any] = []
        for i, network in enumerate(self.networks):
            if i and self.kind == "affine_coupling":  # the other half's turn
                transforms.append(pyro_transforms.Permute(self.reverse))
            transforms.append(self._transform(network, context))
        return FlowDistribution(base, transforms, torch.Size() if context is None else context.shape[:-1])

    def _network(self, node: Flow, context: int, position: int) -> nn.Module:
        hidden, activation, width = list(node.hidden), ACTIVATIONS[node.activation], self.width
        if self.kind == "planar":
            if not context:
                return _Ridge(width)
            return DenseNN(context, hidden, [1, width, width], nonlinearity=activation)
        network: Any
        if self.kind == "affine_coupling":
            split = width // 2
            sizes = [width - split, width - split]
            if context:
                network = ConditionalDenseNN(split, context, hidden, sizes, nonlinearity=activation)
            else:
                network = DenseNN(split, hidden, sizes, nonlinearity=activation)
        else:
            order = torch.arange(width)
            order = order.flip(0) if position % 2 else order
            options = {"permutation": order, "nonlinearity": activation}
            if context:
                network = ConditionalAutoRegressiveNN(width, context, hidden, **options)
            else:
                network = AutoRegressiveNN(width, hidden, **options)
        with torch.no_grad():
            for parameter in network.layers[-1].parameters():
                parameter.div_(CAUTION)
        return network

    def _transform(self, network: nn.Module, context: Tensor | None) -> Any:
        if self.kind == "planar":
            return InvertiblePlanar(network() if context is None else network(context))
        given: Any = network if context is None else partial(network, context=context)
        if self.kind == "affine_coupling":
            return pyro_transforms.AffineCoupling(self.width // 2, given)
        return Autoregressive(given)


class _Ridge(nn.Module):
    """The numbers of one planar transform that depends on nothing: bias, u and w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.bias = nn.Parameter(torch.zeros(1))
        self.u = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.w = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """As Pyro's transform takes them."""
        return self.bias, self.u, self.w


class Autoregressive(pyro_transforms.AffineAutoregressive):
    """Pyro's autoregressive transform y = μ(x) + σ(x)·x, its way back in operations that can be recorded."""

    def _inverse(self, y: Tensor) -> Tensor:
        """X of y: each pass is right for one more dimension, given those before it."""
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):
            loc, log_scale = self.arn(x)
            log_scale = clamp_preserve_gradients(log_scale, self.log_scale_min_clip, self.log_scale_max_clip)
            x = (y - loc) * torch.exp(-log_scale)
        self._cached_log_scale = log_scale
        return x


class InvertiblePlanar(ConditionedPlanar):
    """Pyro's planar transform y = x + û·tanh(wᵀx + b), with a way back for values it has not drawn itself."""

    def _inverse(self, y: Tensor) -> Tensor:
        """X of y: a = wᵀx solves a + wᵀû·tanh(a + b) = wᵀy, whose left side rises with a."""
        bias, u, w = self._params
        u_hat = self.u_hat(u, w)
        slope, target = (w * u_hat).sum(-1, keepdim=True), (w * y).sum(-1, keepdim=True)
        low, high = (target - slope.abs()).detach(), (target + slope.abs()).detach()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = middle + slope * torch.tanh(middle + bias) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        a = ((low + high) / 2).detach()
        curve = torch.tanh(a + bias)
        # One step of Newton's from the solution: it stays, and has the solution's gradient.
        a = a - (a + slope * curve - target) / (1 + slope * (1 - curve**2)).detach()
        return y - u_hat * torch.tanh(a + bias)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log |1 + (1 − tanh²(wᵀx + b))·wᵀû|: Pyro's remembers that of the last draw alone."""
        bias, u, w = self._params
        curve = torch.tanh((w * x).sum(-1, keepdim=True) + bias)
        slope = (w * self.u_hat(u, w)).sum(-1, keepdim=True)
        return torch.log1p(slope * (1 - curve**2)).squeeze(-1)
