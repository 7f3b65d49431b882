"""Image-shaped nodes, and whether a `Conv` fits where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ppl_gen.declare.networks import Conv
from ppl_gen.errors import SpecError

if TYPE_CHECKING:
    from ppl_gen.declare.scope import Entry

Image = tuple[int, int, int]


def image_of(dim: Any) -> Image | None:
    """(channels, height, width) of an image-shaped node's size; None for another one.

    Example:
        >>> image_of((28, 28)), image_of((3, 32, 32)), image_of((7,))
        ((1, 28, 28), (3, 32, 32), None)

    """
    if not isinstance(dim, tuple) or len(dim) not in (2, 3):
        return None
    return (1, *dim) if len(dim) == 2 else dim


def sizes_between(term: Conv, image: Image, place: str) -> list[tuple[int, int]]:
    """Height and width of an image before and after each convolution, from the largest: one more than layers.

    Raises:
        SpecError: the window is larger than what it is to move over; the place and the numbers are named.

    Example:
        >>> sizes_between(Conv("x", [32, 64]), (1, 28, 28), "z.loc")
        [(28, 28), (14, 14), (7, 7)]

    """
    sizes = [image[1:]]
    for layer in range(len(term.channels)):
        height, width = sizes[-1]
        if min(height, width) + 2 * term.padding < term.kernel:
            way = ", ".join(f"{h} × {w}" for h, w in sizes)
            raise SpecError(
                f"{place}: {term} has {len(term.channels)} layers, and an image of {way} has no window of "
                f"{term.kernel} × {term.kernel} left for layer {layer + 1} (padding {term.padding}): write fewer "
                "channels, or a smaller kernel or stride",
                word="Conv",
            )
        after = [(n + 2 * term.padding - term.kernel) // term.stride + 1 for n in (height, width)]
        sizes.append((after[0], after[1]))
    return sizes


def check_convolution(
    name: str, parameter: str, term: Conv, entry: Entry, known: Mapping[str, Entry], *, as_node: bool
) -> None:
    """Hold a `Conv` against the sizes of its parents and of the node whose parameter it gives.

    Raises:
        SpecError: several images enter it, none is there at either end, both ends are images, or one is too small.

    """
    place = f"{name}.{parameter}" if parameter else name
    images = [parent for parent in term.of if image_of(getattr(known[parent], "dim", None))]
    own = image_of(getattr(entry, "dim", None)) if as_node else None
    if images and len(term.of) > 1:
        raise SpecError(
            f"{place}: {term} takes one image and nothing beside it; write h: Conv({images[0]}, ...) as a value of "
            "its own, and MLP([h, ...], ...) or Linear([h, ...])",
            word="Conv",
        )
    if images and own:
        raise SpecError(
            f"{place}: {term} leads from an image to an image; write h: Conv({images[0]}, ...) as a value of its "
            "own, and Conv(h, ...)",
            word="Conv",
        )
    if images:
        sizes_between(term, image_of(known[images[0]].dim) or (1, 1, 1), place)  # type: ignore[union-attr]
    elif own:
        sizes_between(term, own, place)
    elif as_node:
        raise SpecError(
            f"{place}: {term} has an image at neither end; write the size of one as a list, "
            f"as {entry.family}([1, 28, 28], ...)",  # type: ignore[union-attr]
            word="Conv",
        )
