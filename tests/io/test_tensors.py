"""Tensor files: what is read, what is refused in one line, and files that are written completely or not at all."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from minip2p.io.tensors import (
    SafetensorsBuffer,
    fingerprint,
    layout_bytes,
    printable,
    read_metadata,
    read_tensors,
    write_tensors,
)


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors({"x": torch.ones(2)}, path, {"step": "1"})
    with pytest.raises(AttributeError):
        write_tensors({"x": None}, path)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_tensors_and_metadata_are_read_as_they_were_written(tmp_path):
    tensors = {"x": torch.arange(6.0).view(2, 3), "y": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tensors | {"x": tensors["x"].T.contiguous().T}, tmp_path / "a", {"step": "1"})
    out = read_tensors(tmp_path / "a")
    assert out.keys() == tensors.keys() and all(torch.equal(out[name], tensors[name]) for name in tensors)
    assert read_metadata(tmp_path / "a") == {"step": "1"}
    write_tensors(tensors, tmp_path / "b")
    assert read_metadata(tmp_path / "b") == {}


def test_a_missing_and_a_broken_file_are_one_line(tmp_path):
    for path in (tmp_path / "a", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; is .* a diffusers model folder?"):
            read_tensors(path)
    write_tensors({"x": torch.ones(99)}, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for damaged in (b"", content[:-1], content[:20], b"<html>" * 9, b"\x80\x02}q\0."):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(ValueError, match="a: not a whole safetensors file .*; download or copy it again") as error:
            read_tensors(tmp_path / "a")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_buffer_that_is_filled_in_place_is_a_file(tmp_path, in_memory):
    layout = {"x": (torch.float32, (2, 3)), "y": (torch.float16, (5,)), "z": (torch.bfloat16, ())}
    file = tmp_path / "a.safetensors"
    buffer = SafetensorsBuffer(layout, {"é": "猫"}, None if in_memory else file)
    assert layout_bytes(layout) == 24 + 10 + 2
    for n, tensor in enumerate(buffer.tensors.values()):
        tensor.fill_(n)
    if in_memory:
        return
    out = load_file(file)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in out.items()} == layout
    assert [float(t.mean()) for t in out.values()] == [0, 1, 2] and read_metadata(file) == {"é": "猫"}


def test_a_buffer_holds_floating_point_numbers_only():
    with pytest.raises(ValueError, match="x cannot be kept as torch.int64"):
        SafetensorsBuffer({"x": (torch.int64, (1,))}, {})


def test_a_fingerprint_tells_weights_names_and_dtypes_apart():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    modules = ([first], [second], [first, second], [nn.Sequential(first)], [nn.Linear(4, 4).bfloat16()])
    digests = [fingerprint(module) for module in modules] + [fingerprint([first], "v-prediction")]
    assert len(set(digests)) == len(digests) and fingerprint([first]) == digests[0]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a" * 10_000, "\u202e"])
def test_names_from_a_file_are_safe_to_print(name):
    assert printable(name).isprintable() and len(printable(name)) < 300
    assert printable("unet.conv_in.weight") == "unet.conv_in.weight"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_buffer_is_a_file_that_the_safetensors_library_reads(tmp_path, dtype):
    shapes = {"a": (dtype, (3, 1, 2)), "b": (dtype, ()), "c": (dtype, (0, 4))}
    for n, tensor in enumerate(SafetensorsBuffer(shapes, {"note": "é"}, tmp_path / "x").tensors.values()):
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + n)
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"note": "é"}
        for n, (name, (_, shape)) in enumerate(shapes.items()):
            expected = (torch.arange(math.prod(shape)).reshape(shape) + n).to(dtype)
            assert torch.equal(file.get_tensor(name), expected) and file.get_tensor(name).dtype == dtype
