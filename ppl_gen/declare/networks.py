"""Terms that are networks of other kinds than `MLP`: convolutions, and a module of the user's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator

from ppl_gen.declare.arguments import Activation, Parents, Size, Transform, shown, whole
from ppl_gen.declare.declared import declared, written
from ppl_gen.declare.primitives import ParentsLike, SizeLike, Term
from ppl_gen.errors import SpecError

PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")  # package.module:name


def _channels(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise SpecError(
            f"must be a list of at least one number of channels, as in [32, 64], got {shown(value)}"
        )
    return tuple(whole(item) for item in value)


def _module(value: object) -> object:
    kinds = (
        'an nn.Module, a function that makes one, or the place of such a function, as "package.module:name"'
    )
    if isinstance(value, str):
        if not PLACE.fullmatch(value):
            raise SpecError(f"must be {kinds}, got {shown(value)}")
        return value
    if not callable(value):
        raise SpecError(f"must be {kinds}, got {shown(value)}")
    return _place(value) or value


def _place(value: object) -> str | None:
    """Where a function or class can be imported from; None where it cannot, as one made in `__main__`."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module in (None, "__main__") or not PLACE.fullmatch(f"{module}:{name}"):
        return None
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value else None


@declared
class Conv(Term):
    """A convolutional network: from an image to numbers, or from numbers to an image.

    Of an image-shaped parent, as in `z: Normal(8, loc=Conv(x, [32, 64]))` with `x: Normal([1, 28, 28])`, strided
    convolutions from the image to `channels`, then a linear layer; as a value of its own, `h: Conv(x, [32, 64])`,
    the last convolution's, activated and flattened. Of other parents, for a parameter of an image-shaped node, as
    in `x: Bernoulli([1, 28, 28], logits=Conv(z, [64, 32]))`, a linear layer to the first of `channels`, then
    transposed convolutions up to the image. An image is [height, width] or [channels, height, width].

    A convolution turns n pixels of a side into ⌊(n + 2·padding − kernel)/stride⌋ + 1; a transposed one goes back
    through the same sizes.

    Args:
        of: one image, or any number of parents of other kinds, whose values are laid side by side.
        channels: of the images between the layers, in the order in which values pass; one for each convolution.
        kernel: pixels along each side of the window.
        stride: how far the window moves.
        padding: rows of zeros around an image.
        activation: as of `MLP`.
        transform: applied to the result; None for the constraint's own.

    Reference: Radford, Metz and Chintala (2016), whose kernel 4, stride 2 and padding 1 halve and double an image.

    Example:
        >>> Conv("z", [64, 32])
        Conv(z, [64, 32])

    """

    of: Parents
    channels: Annotated[tuple[int, ...], BeforeValidator(_channels)]
    _: KW_ONLY
    kernel: Annotated[int, BeforeValidator(whole)] = 4
    stride: Annotated[int, BeforeValidator(whole)] = 2
    padding: Annotated[int, BeforeValidator(partial(whole, least=0))] = 1
    activation: Activation = "relu"
    transform: Transform = None
    by: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            of: ParentsLike,
            channels: Sequence[int],
            *,
            kernel: int = 4,
            stride: int = 2,
            padding: int = 1,
            activation: str = "relu",
            transform: str | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if self.padding >= self.kernel:
            raise SpecError(
                f"Conv's padding must be less than its kernel, got padding={self.padding}, kernel={self.kernel}",
                word="padding",
            )

    def parents(self) -> tuple[str, ...]:
        """What enters."""
        return self.of


@declared
class Net(Term):
    """A network of the user's own: a `torch.nn.Module` as a function of the parents.

    What enters is what enters an `MLP` (rule 13), one row (B, inputs) for each; what comes out is (B, outputs). A
    module's forward is to be one function of one row: with dropout or batch normalisation it is refused.

    Args:
        module: a function or class that is called with the two widths, `make(inputs, outputs)`, and returns a
            module, as `torch.nn.Linear` does; a module, which is copied, its weights where learning begins; or the
            place of such a function, "package.module:name". A frozen parameter (`requires_grad=False`) stays as
            it is.
        of: the parent or parents; their values are laid side by side.
        dim: 1 for one value that serves all dimensions; the width where a named one is used as a value.
        transform: applied to the result; None for the constraint's own.

    In a text only the place can stand, and importing it runs code: such a text is read where it is trusted alone,
    `read_spec(path, trust=True)` or `--trust`.

    Example:
        >>> Net("torch.nn:Linear", "z")
        Net("torch.nn:Linear", z)

    """

    module: Annotated[Any, BeforeValidator(_module)]
    of: Parents
    _: KW_ONLY
    dim: Size = None
    transform: Transform = None
    by: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:

        def __init__(
            self, module: object, of: ParentsLike, *, dim: SizeLike = None, transform: str | None = None
        ) -> None: ...

    def parents(self) -> tuple[str, ...]:
        """What enters."""
        return self.of

    @property
    def label(self) -> str:
        """The module's place; of one that exists in memory alone, its name in angle brackets."""
        if isinstance(self.module, str):
            return self.module
        name = getattr(self.module, "__name__", type(self.module).__name__)
        return f"<{name.strip('<>')}>"

    def __repr__(self) -> str:
        """The notation, the module by its label."""
        rest = [written(self.of, names=True)]
        rest += [f"dim={written(self.dim)}"] if self.dim is not None else []
        rest += [f"transform={written(self.transform)}"] if self.transform is not None else []
        return f"Net({written(self.label)}, {', '.join(rest)})"


def net_of_text(
    *arguments: Any, trust: bool = False, nets: Mapping[str, object] | None = None, **options: Any
) -> Net:
    """Read a `Net` that stands in a text: by what the caller gives for its label, else only where trusted.

    Raises:
        SpecError: saying what to pass.

    """
    label = options.pop("module", None) if not arguments else arguments[0]
    if isinstance(label, str) and label in (nets or {}):
        label = (nets or {})[label]
    elif isinstance(label, str) and label.startswith("<"):
        raise SpecError(
            f"Net's module {label} was made in memory and cannot be imported: give it, or what makes it, as "
            f"nets={{{label!r}: ...}}",
            word="Net",
        )
    elif not trust:
        raise SpecError(
            f"Net names code to be run ({shown(label)}), which is read from a text only where that is trusted: "
            "trust=True, or --trust",
            word="Net",
        )
    return Net(label, *arguments[1:], **options)
