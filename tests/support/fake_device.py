"""A device without hardware, on which a tensor that is on the wrong device is an error, as on a GPU.

`FakeTensor` states the device "meta" and holds its values in a tensor on the CPU. An operation on such tensors computes
with these values. Operations that mix devices fail where CUDA's would, and those for which the CPU would wait for CUDA
are counted.
"""

import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from paths import ROOT
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

FAKE = "fake"  # its name for --device
DEVICE = torch.device("meta")
PACKAGE = ROOT / "minip2p"
# CUDA accepts tensors of the CPU here: copies, and indices.
MIXES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
INDEXES = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten._unsafe_index.Tensor,
}
WRITES_AT = INDEXES - {torch.ops.aten.index.Tensor, torch.ops.aten._unsafe_index.Tensor}  # whose values must be there
# The size of their result, or what they return, depends on values.
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.repeat_interleave.Tensor,
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

    def __format__(self, specification):
        return format(self.item(), specification) if self.ndim == 0 else super().__format__(specification)

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
    if any(tensor.device == DEVICE and not fake for tensor, fake in zip(tensors, on_device, strict=True)):
        raise RuntimeError(f"{function}: torch made a tensor without values, as of a list that is an index")
    places = on_device[:1] if function in INDEXES else on_device
    is_mixed = any(places) and not all(
        fake or tensor.ndim == 0 for tensor, fake in zip(tensors[: len(places)], places, strict=True)
    )
    if is_mixed and function not in MIXES:
        shapes = [(tuple(tensor.shape), str(tensor.device)) for tensor in tensors]
        raise RuntimeError(f"{function}: tensors on different devices: {shapes}")
    if function in WRITES_AT and on_device[0] and not isinstance(args[2], FakeTensor) and args[2].ndim:
        raise RuntimeError(f"{function}: values of the CPU for a tensor on the device")
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


def waits(function, args, kwargs):
    """Whether the CPU would wait for CUDA here, as `torch.cuda.set_sync_debug_mode` tells of it."""
    on_device = [isinstance(tensor, FakeTensor) for tensor in tensors_in((args, kwargs))]
    if function in INDEXES:  # an index from the CPU is copied; a mask becomes as many indices as it has ones
        return on_device[0] and any(not isinstance(i, FakeTensor) or i.dtype == torch.bool for i in tensors_in(args[1]))
    if function not in MIXES:
        return function in READS and any(on_device)
    device = kwargs.get("device")
    is_target = on_device[0] if device is None else torch.device(device) == DEVICE
    is_sent, is_read = is_target and not on_device[-1], on_device[-1] and not is_target
    is_asynchronous = args[2:3] == (True,) or kwargs.get("non_blocking", False)
    assert not (is_read and is_asynchronous), "the CPU would read memory before CUDA has written it"
    return is_read or (is_sent and not is_asynchronous)


def place():
    """The line of minip2p that runs now."""
    frames = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "elsewhere"


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
    """Makes and moves tensors of the device. waits: line of minip2p -> how often the CPU would wait for it there."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # there, operations arrive that are made of others
            with self:
                out = function.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if waits(function, args, kwargs):
            self.waits[place()] += 1
        return execute(function, args, kwargs)


@contextmanager
def fake_device():
    """Within it, `device="meta"` is the fake device. Yields the `Operations`."""
    with Operations() as operations, Factories():
        yield operations
