"""A second device that needs no GPU: tensors that say "elsewhere" and are computed on the CPU.

What a GPU would refuse is refused: an operation on tensors of both devices, and numpy's view of
one that isn't the CPU's. So a test walks a path as it runs on a GPU, and compares its answers with
the CPU's, which are the same bit for bit.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)  # once a process; changes nothing of the CPU
DEVICE = torch.device(NAME, 0)

ATEN = torch.ops.aten
CROSSES = {ATEN._to_copy.default, ATEN.copy_.default}  # what takes numbers from one to the other
INDEXED = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}  # by the CPU's
INDEXED |= {ATEN._index_put_impl_.default, ATEN._unsafe_index.Tensor}


class Elsewhere(Tensor):
    """A CPU tensor, `here`, that says it lies on DEVICE."""

    @staticmethod
    def __new__(cls, here: Tensor):
        made = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"Elsewhere({self.here})"

    def tolist(self) -> list:
        return self.here.tolist()

    def numpy(self, *_: object, **__: object) -> None:
        raise TypeError(f"numpy takes no tensor on {DEVICE}; .cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Tensors that are made there from nothing are there as well."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor` fills its own memory, which no operation tells of."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if func is torch.tensor and asked is not None and torch.device(asked).type == NAME:
            return Elsewhere(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


def _computed(func, args: tuple, kwargs: dict):
    flat, _ = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = kwargs | {"device": "cpu"}
        to_there = torch.device(asked).type == DEVICE.type
    else:
        to_there = bool(there) if func is not ATEN.copy_.default else isinstance(args[0], Elsewhere)
    _refuse_both(func, tensors, there)
    here = lambda x: x.here if isinstance(x, Elsewhere) else x  # noqa: E731
    found = func(*tree_map(here, args), **tree_map(here, kwargs))
    same = {id(x.here): x for x in there}  # what is changed in place stays itself

    def wrapped(x: object) -> object:
        if not isinstance(x, Tensor) or not to_there:
            return x
        return same[id(x)] if id(x) in same else Elsewhere(x)

    return tree_map(wrapped, found)


def _refuse_both(func, tensors: list[Tensor], there: list[Tensor]) -> None:
    apart = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
    if func in INDEXED and isinstance(tensors[0], Elsewhere):
        apart = [x for x in apart if x.dtype not in (torch.int64, torch.bool)]
    if there and apart and func not in CROSSES:
        raise RuntimeError(f"{func}: tensors on {DEVICE} and on the CPU")


def to(model: nn.Module) -> nn.Module:
    """The model with all its parameters and buffers there."""
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None and not isinstance(own, Elsewhere):
                moved = Elsewhere(own.detach())
                module._parameters[name] = nn.Parameter(moved, requires_grad=own.requires_grad)
        for name, own in module._buffers.items():
            if own is not None and not isinstance(own, Elsewhere):
                module._buffers[name] = Elsewhere(own)
    return model


@contextmanager
def device() -> Iterator[None]:
    """For the while NAME is a device that tensors can be made on and taken to, in this thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings(action="ignore", category=UserWarning), _Factories(), _Literals():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
