"""Hostile and broken files of weights: always one clear line, never a crash, or a model that is not whole."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import minip2p
from minip2p.checkpoints import strict
from minip2p.checkpoints.diffusers_folder import read_shards
from minip2p.checkpoints.lora import Lora
from minip2p.checkpoints.strict import load_module


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(2, 3, 1), nn.Linear(3, 3)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "weights.safetensors"
    g = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(p.shape, generator=g) for name, p in Small().state_dict().items()}, path)
    return path


def outcome(path, content):
    """What loading it gives: a module that is whole, or None where it is refused with one line that names the file."""
    path.write_bytes(content)
    try:
        module = load_module(Small, path, dtype=torch.float32)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return None
    shapes = {name: tuple(p.shape) for name, p in module.state_dict().items()}
    assert shapes == {name: tuple(p.shape) for name, p in Small().state_dict().items()}
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in module.parameters())
    return module


def built(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def taken_apart(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


MANY = settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = st.one_of(
    st.integers(-3, 40), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30]), st.floats(), st.none()
)


@MANY
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 600)),
    more=st.binary(max_size=9),
)
def test_bytes_that_are_changed_cut_off_or_added(file, tmp_path_factory, changes, cut, more):
    whole = bytearray(file.read_bytes())
    for where, byte in changes:
        whole[where % len(whole)] = byte
    content = bytes(whole[:cut]) + more
    made = outcome(file.with_name("changed.safetensors"), content)
    if cut is not None and cut < len(whole) and not more:
        assert made is None  # what is cut off is never loaded


@MANY
@given(data=st.data())
def test_headers_that_lie(file, data):
    """Of one tensor: another dtype, shape, place or name; or the length of the header itself."""
    header, body = taken_apart(file.read_bytes())
    name = data.draw(st.sampled_from(sorted(header)))
    lie = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "drop", "length", "entry", "metadata"]))
    length = None
    if lie == "dtype":
        header[name]["dtype"] = data.draw(
            st.sampled_from(["F16", "F64", "I8", "I32", "U32", "BOOL", "F8_E4M3", "F4", "X", "", 3, None])
        )
    elif lie == "shape":
        header[name]["shape"] = data.draw(st.one_of(st.lists(numbers, max_size=5), st.text(max_size=3)))
    elif lie == "data_offsets":
        header[name]["data_offsets"] = data.draw(st.one_of(st.lists(numbers, max_size=3), st.text(max_size=3)))
    elif lie == "name":
        header[data.draw(st.text(max_size=8))] = header.pop(name)
    elif lie == "drop":
        del header[name]
    elif lie == "length":
        length = data.draw(st.one_of(st.integers(0, 2000), st.sampled_from([2**32, 2**63, 2**64 - 1])))
    elif lie == "entry":
        header[name] = data.draw(st.one_of(numbers, st.text(max_size=3), st.lists(st.integers(), max_size=3)))
    else:
        header["__metadata__"] = data.draw(
            st.one_of(numbers, st.dictionaries(st.text(max_size=3), numbers, max_size=3))
        )
    made = outcome(file.with_name("lies.safetensors"), built(header, body, length))
    if made is not None:  # the lie was the truth, or said nothing of the tensors
        want = load_file(file)
        assert all(torch.equal(tensor, want[key]) for key, tensor in made.state_dict().items())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 8,
        b"\0" * 100,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**62) + b"{}",
        built(b"[" * 200_000, b""),
        built(b'{"a":' * 50_000, b""),
        built(b"\xff\xfe", b""),
        b"\x80\x02}q\x00.",
        b"PK\x03\x04",
        built(
            b'{"conv.bias":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
            b'"conv.bias":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
            b"\0" * 12,
        ),
        built(
            {
                "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
                "b": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]},
            },
            b"\0" * 16,
        ),
        built({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"\0" * 16),
        built({"a": {"dtype": "F32", "shape": [3], "data_offsets": [2**70, 2**70 + 12]}}, b"\0" * 16),
    ],
)
def test_files_that_are_none(file, content):
    """Empty, deep, a pickle and an archive; names twice; tensors that overlap, or lie far beyond the file."""
    assert outcome(file.with_name("none.safetensors"), content) is None


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    "what", ["another part's", "another family's", "empty", "folder", "link to nowhere", "a pickle"]
)
def test_a_models_file_that_is_something_else(family, tmp_path, part, what):
    """Whatever stands where its weights should be."""
    folder = tmp_path / "model"
    shutil.copytree(family("SD 1")[1], folder)
    path = folder / part / ("model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors")
    other = family("SDXL")[1]
    path.unlink()
    if what == "another part's":
        wrong = "vae" if part != "vae" else "unet"
        shutil.copy(other / wrong / "diffusion_pytorch_model.safetensors", path)
    elif what == "another family's":
        shutil.copy(other / ("text_encoder_2" if part == "text_encoder" else part) / path.name, path)
        if part == "vae":  # which is the same: with a tensor more
            save_file({**load_file(path), "extra": torch.ones(1)}, path)
    elif what == "empty":
        path.touch()
    elif what == "folder":
        path.mkdir()
    elif what == "link to nowhere":
        path.symlink_to(tmp_path / "nowhere")
    else:
        torch.save({"a": torch.ones(1)}, path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        minip2p.load(folder).text("a cat")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_file_that_may_not_be_read_is_one_clear_line(file, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(strict, "safe_open", refuse)
    with pytest.raises(ValueError, match=r"weights.safetensors: .*Permission denied"):
        load_module(Small, file, dtype=torch.float32)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named_by_the_first_picture(family, tmp_path, value):
    folder = tmp_path / "model"
    shutil.copytree(family("SD 1")[1], folder)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"mid_block.resnets.0.conv1.weight is not finite: the weights are damaged"):
        minip2p.load(folder).generate("a cat", steps=1)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4),
    dropped=st.integers(0, 400),
    renamed=st.text(max_size=12),
    odd=st.sampled_from(["", "bytes", "drop", "name", "shape"]),
)
def test_a_damaged_single_file_is_its_own_weights_or_one_clear_line(family, tmp_path, changes, dropped, renamed, odd):
    """What is derived from its keys and shapes, and then read by them."""
    _, folder, file = family("SD 1")
    tensors, path = dict(load_file(file)), Path(tmp_path) / "single.safetensors"
    name = sorted(tensors)[dropped % len(tensors)]
    if odd in ("drop", "name"):
        gone = tensors.pop(name)
        tensors |= {renamed: gone} if odd == "name" else {}
    elif odd == "shape":
        tensors[name] = tensors[name].flatten()[:3].clone()
    save_file(tensors, path)
    if odd == "bytes":
        content = bytearray(path.read_bytes())
        for where, byte in changes:
            content[where % 40_000] = byte  # its header, and some of its numbers
        path.write_bytes(content)
    small = Path(tmp_path) / "small"
    if not small.exists():
        shutil.copytree(folder / "tokenizer", small / "tokenizer")
    try:
        made = minip2p.load(path, config=small)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and (str(path) in str(error) or str(small) in str(error)), error
    else:
        want = minip2p.load(folder)
        for part in ("unet", "vae"):
            assert getattr(made, part).state_dict().keys() == getattr(want, part).state_dict().keys()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_index_is_the_whole_or_one_clear_line(tmp_path, data):
    """Of two shards: names that lead elsewhere, are gone, or are none."""
    shards = {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.ones(3), "z": torch.ones(1)}}
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    odd = st.one_of(
        st.text(max_size=12),
        numbers,
        st.sampled_from(
            [
                "../a.safetensors",
                "/a.safetensors",
                "a.safetensors",
                "c.safetensors",
                ".",
                "",
                "a.safetensors/",
                "b.safetensors\0",
            ]
        ),
        st.lists(st.integers(), max_size=2),
    )
    for _ in range(data.draw(st.integers(0, 2))):
        index["weight_map"][data.draw(st.sampled_from(["x", "y", "z", "more"]))] = data.draw(odd)
    content = json.dumps(index).encode()
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "index.json"
    path.write_bytes(content)
    try:
        found = read_shards(path)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
    else:
        assert {name: t.shape[0] for name, t in found.items()} == {"x": 2, "y": 3, "z": 1}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_lora_with_changed_bytes_changes_a_model_as_a_whole_or_not_at_all(model, tmp_path, changes):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = model.unet.config.block_out_channels[-1]
    path = Path(tmp_path) / "lora.safetensors"
    save_file({f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}, path)
    content = bytearray(path.read_bytes())
    for where, byte in changes:
        content[where % len(content)] = byte
    path.write_bytes(content)
    try:
        made = Lora.read(path, model)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert len(made.changes) == 1
