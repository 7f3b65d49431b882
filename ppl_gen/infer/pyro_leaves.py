"""What a user's Pyro functions compute with and do not make: found by running them and watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import ismethod, unwrap
from types import CellType, FunctionType
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ppl_gen.errors import FitError
from ppl_gen.infer.pyro_pair import Leaves

DEPTH = 3  # objects within objects in which modules are looked for


class Watching(TorchFunctionMode):
    """Keeps the tensors that torch functions take and none of them has made.

    Args:
        given: tensors that are known, as the rows.

    Attributes:
        found: by identity, the others, in the order they are met.
        largest: numbers that the largest result holds.

    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self.largest = 1
        self._made = {id(tensor): tensor for tensor in given}  # held, so that no other takes the identity

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One function."""
        del types
        for tensor in _tensors((args, kwargs or {})):
            if id(tensor) not in self._made:
                self.found.setdefault(id(tensor), tensor)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if id(tensor) not in self.found:
                self._made[id(tensor)] = tensor
                self.largest = max(self.largest, tensor.numel())
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from _tensors(part)


def find_leaves(
    halves: Sequence[Callable[..., Any]], run: Callable[[], Any], given: Sequence[Tensor]
) -> tuple[Leaves, int]:
    """The leaves of functions, and the size of their largest result. Pyro's store is to be a fresh one.

    Args:
        halves: the functions, in which modules are looked for by name.
        run: runs them.
        given: the rows.

    Raises:
        FitError: they write over what they close over, or that was computed from parameters outside.

    """
    with _buffers_kept(halves):
        with Watching(given) as first:
            run()
        _parted_from_their_beginnings()
        with Watching(given) as second:
            run()
    state = pyro.get_param_store().get_state()
    store, constraints = dict(state["params"]), dict(state["constraints"])
    captured = [tensor for own, tensor in first.found.items() if own in second.found]
    trained: dict[str, Tensor] = {}
    fixed: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, leaf in store.items():
        if id(leaf) not in known:
            known.add(id(leaf))
            trained[name] = leaf
    names = _names(halves)
    for tensor in captured:
        if id(tensor) in known:
            continue
        known.add(id(tensor))
        name = names.get(id(tensor), f"closed over {len(known)}, of shape {tuple(tensor.shape)}")
        if tensor.requires_grad and not tensor.is_leaf:
            raise FitError(
                f"model and guide close over a tensor of shape {tuple(tensor.shape)} that was computed from "
                "parameters outside them, so that these could not be trained: compute it inside"
            )
        (trained if tensor.requires_grad else fixed)[name] = tensor
    _alike(trained)
    return Leaves(trained, fixed, store, constraints), first.largest


def _parted_from_their_beginnings() -> None:
    """Pyro keeps the very tensor that `pyro.param` is given to begin with, the user's: copies take over."""
    store = pyro.get_param_store()
    state = store.get_state()
    for name, leaf in state["params"].items():
        if not isinstance(leaf, nn.Parameter):
            state["params"][name] = leaf.detach().clone().requires_grad_()
            leaf.requires_grad_(False)
    store.clear()
    store.set_state(state)


def _alike(trained: Mapping[str, Tensor]) -> None:
    """Refuse parameters of several types or on several devices: a step joins them in blocks."""
    kinds: dict[str, str] = {}
    for name, leaf in trained.items():
        kinds.setdefault(f"{leaf.dtype} on {leaf.device}", name)
    if len(kinds) > 1:
        listed = ", ".join(f"{name!r} is {kind}" for kind, name in kinds.items())
        raise FitError(
            f"parameters are of one type and on one device, and {listed}: use .to(…) on the modules"
        )


@contextmanager
def _buffers_kept(halves: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Refuse modules that write over their buffers when they are called; what they have written is put back."""
    before: dict[int, tuple[nn.Module, str, Tensor, Tensor]] = {}

    def keep(module: nn.Module, _: Any) -> None:
        for name, buffer in module.named_buffers(recurse=False):
            before.setdefault(id(buffer), (module, name, buffer, buffer.detach().clone()))

    hook = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        written = [own for own in before.values() if not torch.equal(own[2], own[3])]
        with torch.no_grad():
            for _, _, buffer, value in written:
                buffer.copy_(value)
    if written:
        module, name = written[0][:2]
        paths = {
            id(own): path for root, own in _modules(halves) for path, own in own.named_modules(prefix=root)
        }
        raise FitError(
            f"the module {paths.get(id(module), '')!r}, {module}, writes over its buffer {name!r} when it is "
            "called, which a step cannot: put it in eval mode, give it track_running_stats=False, or take a layer "
            "without running statistics (LayerNorm, GroupNorm)"
        )


def _names(halves: Sequence[Callable[..., Any]]) -> dict[int, str]:
    """By identity, the names of parameters and buffers in the modules that functions reach."""
    found: dict[int, str] = {}
    for root, module in _modules(halves):
        for path, tensor in (*module.named_parameters(prefix=root), *module.named_buffers(prefix=root)):
            found.setdefault(id(tensor), path)
    return found


def _modules(halves: Sequence[Callable[..., Any]]) -> list[tuple[str, nn.Module]]:
    """Modules by the names under which functions reach them: as themselves, `self`, closures, globals."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for half in halves:
        for name, value in _reached(half, DEPTH):
            if isinstance(value, nn.Module):
                found.setdefault(id(value), (name, value))
    return list(found.values())


def _reached(value: Any, depth: int, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        yield name, value
        return
    if depth == 0:
        return
    value = unwrap(value) if callable(value) and hasattr(value, "__wrapped__") else value
    if isinstance(value, partial):
        yield from _reached(value.func, depth - 1)
    elif ismethod(value):
        yield from _reached(value.__self__, depth, name)
    elif isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        held = [(key, _content(cell)) for key, cell in cells]
        named = [(key, value.__globals__[key]) for key in value.__code__.co_names if key in value.__globals__]
        for key, own in (*held, *named):
            if isinstance(own, nn.Module | FunctionType) or ismethod(own):
                yield from _reached(own, depth - 1, key)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for key, own in vars(value).items():
            if isinstance(own, nn.Module):
                yield from _reached(own, depth - 1, key)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
