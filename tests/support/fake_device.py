"""A device without hardware, on which a tensor that is on the wrong device is an error, as on a GPU.

`FakeTensor` states the device "meta" and holds its values in a tensor on the CPU. An operation on such tensors computes
with these values. Operations that mix devices fail where CUDA's would.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
# CUDA accepts tensors of the CPU here: copies, and indices.
MIXES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
INDEXES = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten._unsafe_index.Tensor,
}


class FakeTensor(torch.Tensor):
    """A tensor of the device. values: on the CPU."""

    @staticmethod
    def __new__(cls, values, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )

    def __init__(self, values, requires_grad=False):
        self.values = values

    def __repr__(self):
        return f"FakeTensor({self.values})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return execute(function, args, kwargs or {})


def tensors_in(tree):
    """All tensors in arguments, however deep."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [tensor for item in tree for tensor in tensors_in(item)] if isinstance(tree, list | tuple) else []


def execute(function, args, kwargs):
    """The operation on the values. The result is on the device that CUDA's would be on."""
    tensors = tensors_in((args, kwargs))
    on_device = [isinstance(tensor, FakeTensor) for tensor in tensors]
    places = on_device[:1] if function in INDEXES else on_device
    is_mixed = any(places) and not all(
        fake or tensor.ndim == 0 for tensor, fake in zip(tensors[: len(places)], places, strict=True)
    )
    if is_mixed and function not in MIXES:
        shapes = [(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]
        raise RuntimeError(f"{function}: tensors on different devices: {shapes}")
    if function in INDEXES and not on_device[0] and any(on_device):
        raise RuntimeError(f"{function}: an index on the device for a tensor on the CPU")
    values = tree_map(lambda item: item.values if isinstance(item, FakeTensor) else item, (args, kwargs))
    device = kwargs.get("device")
    stays = (any(places) and function is not torch.ops.aten.copy_.default) or (bool(on_device) and on_device[0])
    stays = stays if device is None else torch.device(device) == DEVICE
    if device is not None:
        values[1]["device"] = torch.device("cpu")
    out = function(*values[0], **values[1])
    if function._schema.is_mutable and tensors:  # in place: the result is the argument
        return next((t for t, v in zip(tensors, tensors_in(values), strict=True) if out is v), out)
    return tree_map(lambda item: FakeTensor(item) if isinstance(item, torch.Tensor) else item, out) if stays else out


class Factories(TorchFunctionMode):
    """`torch.tensor` and `torch.as_tensor` do not reach a dispatch mode with their numbers."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        is_constant = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if is_constant and device is not None and torch.device(device) == DEVICE:
            del kwargs["device"]
            return function(*args, **kwargs).to(DEVICE)
        return function(*args, **kwargs)


class Operations(TorchDispatchMode):
    """Makes and moves tensors of the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return execute(function, args, kwargs or {})


@contextmanager
def fake_device():
    """Within it, `device="meta"` is the fake device."""
    with Operations(), Factories():
        yield
