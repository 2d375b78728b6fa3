"""Weights are loaded strictly and memory-mapped; a broken or hostile file is one clear line, never a partial module."""

import json
import pickle
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parity import on_meta
from safetensors.torch import load_file, save_file
from torch import nn

from minip2p.checkpoints.strict import LEGACY_VAE_KEYS, load_module, upgrade_key
from minip2p.config import VAEConfig
from minip2p.io import tensors as tensors_io
from minip2p.vae import VAE


class Small(nn.Module):
    """A module with parameters of several shapes and names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.GroupNorm(1, 3)])


SHAPES = {name: tuple(p.shape) for name, p in Small().state_dict().items()}


def random_tensors(module=None):
    return {name: torch.randn(p.shape) for name, p in (module or Small()).state_dict().items()}


def load_small(path, dtype=torch.float32):
    return load_module(Small, path, dtype=dtype)


def safetensors_bytes(header, body=b"\0" * 16, length=None):
    """A file with this header (JSON or bytes), whether or not it describes the body."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


# Keys, shapes, dtypes


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("conv.weight"), "conv.weight is missing"),
        (lambda t: t.update({"extra.bias": torch.ones(3)}), "extra.bias is not a tensor of this model"),
        (lambda t: t.update({"conv.bias": torch.ones(4)}), r"conv.bias has shape \(4,\) where the config says \(3,\)"),
        (lambda t: t.update({"conv.weight": torch.ones(3, 2)}), r"shape \(3, 2\) where the config says \(3, 2, 1, 1\)"),
        (
            lambda t: t.update({"conv.bias": torch.ones(3).int()}),
            "conv.bias has dtype int32, which is not a dtype of w",
        ),
        (lambda t: t.clear(), "conv.weight is missing; .*; and 3 more"),
    ],
    ids=["missing", "unknown", "wrong size", "wrong number of axes", "integers", "empty"],
)
def test_every_key_shape_and_dtype_must_match(tmp_path, change, message):
    tensors = random_tensors()
    change(tensors)
    save_file(tensors, tmp_path / "weights")
    with pytest.raises(ValueError, match=message) as error:
        load_small(tmp_path / "weights")
    assert str(error.value).startswith(f"{tmp_path / 'weights'}: ") and "\n" not in str(error.value)


def test_legacy_names_of_the_vae_attention_are_accepted(tmp_path):
    config = VAEConfig(block_out_channels=(8,), norm_num_groups=4)
    tensors = random_tensors(on_meta(VAE, config))

    def legacy_name(name):
        if "attentions" in name:
            for legacy, current in LEGACY_VAE_KEYS:
                name = name.replace(f".{current}.", f".{legacy}.")
        return name

    legacy = {legacy_name(name): t for name, t in tensors.items()}
    renamed = set(legacy) - set(tensors)
    assert len(renamed) == 2 * 4 * 2 and {name.split(".")[-2] for name in renamed} == {n for n, _ in LEGACY_VAE_KEYS}
    save_file(legacy, tmp_path / "weights")
    vae = load_module(lambda: VAE(config), tmp_path / "weights", dtype=torch.float32)
    assert all(torch.equal(p, tensors[name]) for name, p in vae.state_dict().items())
    assert upgrade_key("encoder.key.weight") == "encoder.key.weight"  # legacy names exist only inside an attention


# Loaded modules


def test_a_loaded_module_has_the_files_numbers_and_is_ready_for_inference(tmp_path):
    tensors = random_tensors()
    save_file(tensors, tmp_path / "weights")
    module = load_small(tmp_path / "weights")
    assert all(torch.equal(p, tensors[name]) for name, p in module.state_dict().items())
    assert not module.training and not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_converted_to_the_requested_dtype(tmp_path, dtype):
    tensors = random_tensors()
    save_file({name: t.half() for name, t in tensors.items()}, tmp_path / "weights")
    for name, p in load_small(tmp_path / "weights", dtype).state_dict().items():
        assert p.dtype == dtype and torch.equal(p, tensors[name].half().to(dtype))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_that_have_the_requested_dtype_stay_memory_mapped(tmp_path):
    save_file(random_tensors(), tmp_path / "weights")
    before = (tmp_path / "weights").read_bytes()

    def is_mapped(module):
        """For each parameter, whether its address lies in a mapping of the file."""
        spans = [
            line.split()[0].split("-")
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(str(tmp_path / "weights"))
        ]
        spans = [(int(low, 16), int(high, 16)) for low, high in spans]
        return [any(low <= p.data_ptr() < high for low, high in spans) for p in module.parameters()]

    module = load_small(tmp_path / "weights")
    assert all(is_mapped(module))
    assert not any(is_mapped(load_small(tmp_path / "weights", torch.float16)))
    module.conv.weight.zero_()  # copy on write: the file never changes
    assert (tmp_path / "weights").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_in_another_dtype_is_converted_without_being_held(tmp_path, monkeypatch):
    """In 16 bits: the most memory is that of the weights, not theirs and the file's."""
    monkeypatch.setattr(tensors_io, "CONVERTED_AT_ONCE", 2**20)
    path, sizes = tmp_path / "weights", [2**21] * 16  # 16 x 8 MB
    save_file({f"{n}.weight": torch.ones(size, 1) for n, size in enumerate(sizes)}, path)

    def build():
        return nn.ModuleList([nn.Linear(1, size, bias=False) for size in sizes])

    def held(field):
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = held("VmRSS")
    module = load_module(build, path, dtype=torch.bfloat16)
    assert all(torch.equal(p, torch.ones_like(p)) and p.dtype == torch.bfloat16 for p in module.parameters())
    assert held("VmHWM") - before < 0.8 * path.stat().st_size


# Broken and hostile files


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "unet" / "weights", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; is .* a diffusers model folder") as error:
            load_small(path)
        assert str(error.value).startswith(f"{path}: ")


def test_a_file_without_read_permission_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(path, framework):
        raise PermissionError("Permission denied")

    save_file(random_tensors(), tmp_path / "weights")
    monkeypatch.setattr("minip2p.io.tensors.safe_open", refuse)
    with pytest.raises(ValueError, match=r"weights: not a whole safetensors file \(Permission denied\)"):
        load_small(tmp_path / "weights")


def test_a_file_that_is_cut_off_anywhere_is_one_clear_line(tmp_path):
    save_file(random_tensors(), tmp_path / "complete")
    complete = (tmp_path / "complete").read_bytes()
    for size in (*range(0, len(complete), 37), len(complete) - 1):
        (tmp_path / "weights").write_bytes(complete[:size])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_small(tmp_path / "weights")


NOT_SAFETENSORS = {
    "empty": b"",
    "one byte": b"\0",
    "zeros": b"\0" * 8,
    "many zeros": b"\0" * 100,
    "ones": b"\xff" * 64,
    "a pickle": pickle.dumps({"conv.weight": [1.0]}),
    "the start of a pickle": b"\x80\x02}q\x00.",
    "the start of an archive": b"PK\x03\x04",
    "a web page": b"<!doctype html><p>404",
    "json": b'{"a": 1}',
    "a huge header": struct.pack("<Q", 2**40),
    "a huge header and braces": struct.pack("<Q", 2**62) + b"{}",
    "a cut header": struct.pack("<Q", 99) + b"{}",
    "a list": struct.pack("<Q", 2) + b"[]",
    "deep lists": safetensors_bytes(b"[" * 200_000, b""),
    "deep objects": safetensors_bytes(b'{"a":' * 50_000, b""),
    "no text": safetensors_bytes(b"\xff\xfe", b""),
    "past the end": safetensors_bytes({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
    "too few bytes": safetensors_bytes({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}}),
    "bytes left over": safetensors_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "an unknown type": safetensors_bytes({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}),
    "backwards": safetensors_bytes({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}),
    "overlapping tensors": safetensors_bytes(
        {
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "b": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]},
        }
    ),
    "a huge tensor": safetensors_bytes({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "huge offsets": safetensors_bytes({"a": {"dtype": "F32", "shape": [3], "data_offsets": [2**70, 2**70 + 12]}}),
}


@pytest.mark.parametrize("content", NOT_SAFETENSORS.values(), ids=NOT_SAFETENSORS)
def test_a_file_that_is_not_safetensors_is_one_clear_line(tmp_path, content):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file") as error:
        load_small(tmp_path / "weights")
    assert str(error.value).startswith(f"{tmp_path / 'weights'}: ") and "\n" not in str(error.value)


ENTRY = b'"conv.bias":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}'


@pytest.mark.parametrize(
    "content",
    [struct.pack("<Q", 2) + b"{}", safetensors_bytes(b"{" + ENTRY + b"," + ENTRY + b"}", b"\0" * 12)],
    ids=["no tensors", "a name twice"],
)
def test_a_file_without_the_modules_tensors_is_one_clear_line(tmp_path, content):
    assert load_or_refuse(tmp_path / "weights", content) is None


@pytest.fixture(scope="module")
def valid_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "weights.safetensors"
    g = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}, path)
    return path


def load_or_refuse(path, content):
    """Loads a file with this content. Returns a complete module, or None if it is refused with a line that names it."""
    path.write_bytes(content)
    try:
        module = load_small(path)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return None
    assert {name: tuple(p.shape) for name, p in module.state_dict().items()} == SHAPES
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in module.parameters())
    return module


MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD_NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30]), st.floats(), st.none()
)


@MANY
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 600)),
    appended=st.binary(max_size=9),
)
def test_changed_missing_or_appended_bytes_never_make_a_partial_module(valid_file, changes, cut, appended):
    content = bytearray(valid_file.read_bytes())
    for position, byte in changes:
        content[position % len(content)] = byte
    module = load_or_refuse(valid_file.with_name("changed.safetensors"), bytes(content[:cut]) + appended)
    if cut is not None and cut < len(content) and not appended:
        assert module is None


@MANY
@given(data=st.data())
def test_a_false_header_never_makes_a_wrong_module(valid_file, data):
    """The dtype, shape, place or name of a tensor is false, or the length of the header itself."""
    content = valid_file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = data.draw(st.sampled_from(sorted(header)))
    field = data.draw(
        st.sampled_from(["dtype", "shape", "data_offsets", "name", "drop", "length", "entry", "metadata"])
    )
    length = None
    if field == "dtype":
        dtypes = ["F16", "F64", "I8", "I32", "U32", "BOOL", "F8_E4M3", "F4", "X", "", 3, None]
        header[name]["dtype"] = data.draw(st.sampled_from(dtypes))
    elif field == "shape":
        header[name]["shape"] = data.draw(st.one_of(st.lists(ODD_NUMBERS, max_size=5), st.text(max_size=3)))
    elif field == "data_offsets":
        header[name]["data_offsets"] = data.draw(st.one_of(st.lists(ODD_NUMBERS, max_size=3), st.text(max_size=3)))
    elif field == "name":
        header[data.draw(st.text(max_size=8))] = header.pop(name)
    elif field == "drop":
        del header[name]
    elif field == "length":
        length = data.draw(st.one_of(st.integers(0, 2000), st.sampled_from([2**32, 2**63, 2**64 - 1])))
    elif field == "entry":
        entries = st.one_of(ODD_NUMBERS, st.text(max_size=3), st.lists(st.integers(), max_size=3))
        header[name] = data.draw(entries)
    else:
        metadata = st.one_of(ODD_NUMBERS, st.dictionaries(st.text(max_size=3), ODD_NUMBERS, max_size=3))
        header["__metadata__"] = data.draw(metadata)
    false_file = safetensors_bytes(header, body, length)
    module = load_or_refuse(valid_file.with_name("false.safetensors"), false_file)
    if module is not None:  # the change was none, or does not concern the tensors
        expected = load_file(valid_file)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
