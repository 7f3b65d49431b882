"""A normalising flow: the family of a guide where the posterior is far from normal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator

from ppl_gen.declare.arguments import Activation, Hidden, NotYet, Size, one_of, whole
from ppl_gen.declare.declared import declared
from ppl_gen.declare.node import Node
from ppl_gen.declare.terms import Free, Parameter, SizeLike, Term, TermLike
from ppl_gen.errors import SpecError

__all__ = ["Flow"]

KINDS = ("affine_autoregressive", "affine_coupling", "planar")


@declared
class Flow(Node):
    """A normal carried through learned transforms, in a guide: z = T_M(… T_1(loc + scale·ε)), ε ~ N(0, I).

    log q(z) = log N(T⁻¹(z); loc, scale) − Σ_m log |det ∂T_m|. Of `Normal`, it differs in one word: with the same
    `loc` and `scale`, it begins near that Normal and learns what a normal cannot say, such as curved posteriors.

    Args:
        dim: the number of dimensions.
        loc: of the normal it starts from; real.
        scale: likewise; positive.
        context: what the transforms themselves depend on beside z, as `Linear(h)`; `hidden[0]` numbers. Free():
            nothing, one set of transforms for all rows.
        transforms: M.
        kind: "affine_autoregressive" (each dimension is moved and scaled by a network of those before it; the order
            turns round from one transform to the next), "affine_coupling" (one half is moved and scaled by a
            network of the other) or "planar" (one ridge of a tanh each, one dimension suffices).
        hidden: the hidden layers of each transform's network; for an autoregressive one none smaller than dim.
        activation: as of `MLP`.
        per: reserved.

    References: Rezende and Mohamed (2015); Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016); Dinh,
    Sohl-Dickstein and Bengio (2017). The transforms are Pyro's.

    Example:
        >>> from ppl_gen.declare.terms import Linear
        >>> Flow(2, loc=Linear("h"), scale=Linear("h"), context=Linear("h"))
        Flow(2, loc=Linear(h), scale=Linear(h), context=Linear(h))

    """

    dim: Size = None
    _: KW_ONLY
    loc: Parameter = Free()
    scale: Parameter = Free()
    context: Parameter = Free()
    transforms: Annotated[int, BeforeValidator(whole)] = 4
    kind: Annotated[str, BeforeValidator(partial(one_of, choices=KINDS))] = KINDS[0]
    hidden: Hidden = (32,)
    activation: Activation = "relu"
    per: NotYet = None
    constraints: ClassVar[dict[str, str]] = {"loc": "real", "scale": "positive", "context": "real"}
    guide_only: ClassVar[bool] = True

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            loc: TermLike = ...,
            scale: TermLike = ...,
            context: TermLike = ...,
            transforms: int = 4,
            kind: str = ...,
            hidden: Sequence[int] = (32,),
            activation: str = "relu",
            per: None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.dim, tuple):
            raise SpecError("Flow's dim must be one number, not a list", word="dim")
        super().__post_init__()
        if self.context != Free() and not self.context.parents():
            raise SpecError(
                f"Flow's context must be a function of something, as Linear(h), or left out, got {self.context}",
                word="context",
            )
        if self.dim is not None:
            check_flow(self, self.dim)

    def terms(self) -> dict[str, Term]:
        """The parameters in use; a context that is left out is none."""
        found = super().terms()
        return found if found["context"].parents() else {k: found[k] for k in ("loc", "scale")}

    @property
    def own_axes(self) -> dict[str, tuple[int, ...]]:
        """As many numbers for the context as the first hidden layer has."""
        return {"context": (self.hidden[0],)}

    def _left_out(self, name: str, value: object, default: object) -> bool:
        return value == default if name == "context" else super()._left_out(name, value, default)


def check_flow(node: Flow, width: int) -> None:
    """Hold a flow against its number of dimensions.

    Raises:
        SpecError: too few for its kind, or too many for its hidden layers.

    """
    if width == 1 and node.kind != "planar":
        raise SpecError(
            f'Flow of kind "{node.kind}" needs two dimensions or more; of one, write Normal or kind="planar"',
            word="kind",
        )
    if node.kind == "affine_autoregressive" and min(node.hidden) < width:
        raise SpecError(
            f"Flow's hidden layers must have at least as many units as it has dimensions, {width}, "
            f"got {list(node.hidden)}",
            word="hidden",
        )
