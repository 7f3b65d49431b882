"""What is written on the command line, read: SPEC with its --set, --algorithm, --device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ppl_gen.declare.declared import nearest
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.notation import parse
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import FitError, SpecError
from ppl_gen.infer.algorithms import ALGORITHMS, EM, SVI, Algorithm, StepwiseEM
from ppl_gen.infer.checkpoints import Checkpoints

TEXTS = ("init", "lowering", "optimizer")  # options whose values are text
DEVICES = ("cpu", "cuda", "mps", "xpu")


def declared(spec: str, settings: Sequence[str], *, trust: bool = False) -> Spec:
    """The declaration with every --set carried out, in order.

    Args:
        spec: a path, or a shipped model's name.
        settings: NODE.OPTION=VALUE each; a Net comes from the file alone.
        trust: whether to import the code that a Net names.

    Raises:
        SpecError: the declaration or a setting is wrong; the message begins with the file or the setting.

    Example:
        >>> declared("gaussian_mixture", ["z.k=2"]).model["z"]
        Categorical(2)
        >>> declared("gaussian_mixture", ["z"])
        Traceback (most recent call last):
        ppl_gen.errors.SpecError: --set z: write NODE.OPTION=VALUE, as --set z.k=2

    """
    found = read_spec(spec, trust=trust)
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise SpecError(f"--set {setting}: write NODE.OPTION=VALUE, as --set z.k=2")
        try:
            found = found.replace(path.strip(), value.strip())
        except SpecError as error:
            raise SpecError(f"--set {setting}: {error}") from None
    return found


def algorithm(text: str | None) -> Algorithm | None:
    """EM or SVI as written; None where nothing is.

    Raises:
        FitError: the text is no algorithm, or an option of it is wrong.

    Example:
        >>> algorithm("SVI(epochs=20)").epochs
        20
        >>> algorithm("SVI(epoch=20)")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ppl_gen.errors.FitError: --algorithm SVI(epoch=20): SVI has no option 'epoch'; did you mean 'epochs'? ...

    """
    if text is None:
        return None
    words = {name: _checked(name, make) for name, make in ALGORITHMS.items()}
    try:
        # The bare word is the algorithm with its defaults.
        found = words[text]() if text in words else parse(text, words)
    except ValueError as error:
        raise FitError(f"--algorithm {text}: {_unquoted(text) or error}") from None
    if not isinstance(found, EM | SVI | StepwiseEM):
        raise FitError(f'--algorithm {text}: write {" or ".join(words)}, as "SVI(epochs=20)"')
    return found


def checkpoints(
    path: Path | None,
    every_epochs: int | None,
    every_minutes: float | None,
    *,
    replace: bool,
    data: Path,
    weights: str | None,
) -> Checkpoints | None:
    """Where and how often a run is kept; None where --checkpoint is left out.

    Raises:
        FitError: how often is said, and not where; or a number is outside its range.

    """
    if path is None:
        if every_epochs is not None or every_minutes is not None:
            raise FitError("--every-epochs and --every-minutes go with --checkpoint DIR")
        return None
    return Checkpoints(path, every_epochs, every_minutes, replace=replace, data=str(data), weights=weights)


def check_device(name: str) -> None:
    """Find out before any work whether torch can compute on a device.

    Raises:
        FitError: it cannot.

    Example:
        >>> check_device("gpu")
        Traceback (most recent call last):
        ppl_gen.errors.FitError: --device gpu: write one of cpu, cuda, mps, xpu, perhaps with a number, as cuda:1

    """
    if name.partition(":")[0] not in DEVICES:
        raise FitError(
            f"--device {name}: write one of {', '.join(DEVICES)}, perhaps with a number, as cuda:1"
        )
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise FitError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _unquoted(text: str) -> str:
    """What to say of an option whose value is text and is written without quotes; "" where none is.

    Example:
        >>> print(_unquoted("SVI(optimizer=adam)"))
        optimizer takes text, in quotes: --algorithm "SVI(optimizer='adam')"

    """
    bare = re.search(rf"\b({'|'.join(TEXTS)})\s*=\s*([A-Za-z][\w+.-]*)", text)
    if bare is None:
        return ""
    quoted = f"{text[: bare.start(2)]}'{bare[2]}'{text[bare.end(2) :]}"
    return f'{bare[1]} takes text, in quotes: --algorithm "{quoted}"'


def _checked(name: str, make: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    """An algorithm's constructor that knows its options by name, and says them."""
    options = [field.name for field in fields(make)]  # type: ignore[arg-type]

    def build(*values: Any, **given: Any) -> Algorithm:
        if values:
            raise FitError(f"{name} takes its options by keyword: {', '.join(options)}")
        for option in given:
            if option not in options:
                hint = nearest(option, options) or ";"
                raise FitError(f"{name} has no option '{option}'{hint} its options: {', '.join(options)}")
        return make(**given)

    return build
