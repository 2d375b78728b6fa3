"""Folders in diffusers' layout: shards, pickled weights, and files that are something else than they should be."""

import json
import shutil

import pytest
import torch
from families import copy_folder, same_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minip2p
from minip2p.checkpoints.diffusers_folder import DiffusersFolder, read_shards

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_pickled_weights_are_named_and_not_read(family, tmp_path):
    folder = copy_folder(family("SD 1")[1], tmp_path / "old")
    (folder / "unet" / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")
    message = (
        "diffusion_pytorch_model.bin: is a pickle, which can run any program when it is opened: get the weights as s"
    )
    with pytest.raises(ValueError, match=message):
        minip2p.load(folder)


@pytest.mark.parametrize(
    "name, message",
    [
        ("diffusion_pytorch_model.non_ema.safetensors", "non_ema.safetensors is not read as it is: rename it to this"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", "not read as it is: download .*safetensors.index.json"),
    ],
)
def test_weights_under_another_name_are_named(family, tmp_path, name, message):
    folder = copy_folder(family("SD 1")[1], tmp_path / "model")
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / name)
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS}: no such file, and .*{message}"):
        minip2p.load(folder)


def test_folders_that_are_something_else_are_named(family, tmp_path):
    folder = copy_folder(family("SD 1")[1], tmp_path / "model")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/b.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match="files: has no unet/; if b.safetensors is a whole checkpoint, give the"
    ):
        minip2p.load(tmp_path / "files")
    with pytest.raises(FileNotFoundError, match="unet: is a part of a model: give the folder above it, .*model"):
        minip2p.load(folder / "unet")
    with pytest.raises(ValueError, match="model_index.json: is a configuration without weights: give its folder"):
        minip2p.load(folder / "model_index.json")
    (folder / "unet").rename(folder / "unet_ema")
    with pytest.raises(FileNotFoundError, match="model: has no unet/, but unet_ema/: to use it, rename it to unet/"):
        minip2p.load(folder)
    (folder / "unet_ema").rename(folder / "transformer")
    with pytest.raises(FileNotFoundError, match="is a model with a transformer, such as SD 3 or Flux, which is not"):
        minip2p.load(folder)


def test_plain_weights_are_preferred_to_shards_and_variants(tmp_path):
    (tmp_path / "unet").mkdir()
    names = [
        WEIGHTS,
        f"{WEIGHTS}.index.json",
        "diffusion_pytorch_model.fp16.safetensors",
        f"{WEIGHTS}.index.fp16.json",
        "diffusion_pytorch_model.bf16.safetensors",
    ]
    for name in names:
        (tmp_path / "unet" / name).touch()
    for name in names:
        assert DiffusersFolder(tmp_path).weights_file("unet").name == name
        (tmp_path / "unet" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS}: no such file"):
        DiffusersFolder(tmp_path).weights_file("unet")


@pytest.fixture(scope="module")
def sharded_unet(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "unet"
    family("SD 1")[0].unet.save_pretrained(folder, max_shard_size="1MB")
    return folder


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda index, file: index["weight_map"].update({"conv_in.bias": "../../x.safetensors"}),
            "not in the same folder",
        ),
        (lambda index, file: index["weight_map"].update({"conv_in.bias": "nowhere.safetensors"}), "but the index says"),
        (
            lambda index, file: index.update(weight_map={"conv_in.bias": "nowhere.safetensors"}),
            "nowhere.safetensors: no s",
        ),
        (
            lambda index, file: index["weight_map"].update({"more.bias": file}),
            "more.bias is in none of the files that it names",
        ),
        (lambda index, file: index["weight_map"].pop("conv_in.bias"), None),  # it is in a shard, which is enough
        (lambda index, file: index.pop("weight_map"), "has no weight_map"),
        (lambda index, file: index.update(weight_map={"a": 3}), "has no weight_map"),
    ],
)
def test_an_index_of_shards_is_read_strictly(family, sharded_unet, tmp_path, change, message):
    folder = tmp_path / "model"
    copy_folder(sharded_unet, folder / "unet")
    path = folder / "unet" / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text())
    change(index, index["weight_map"]["conv_in.weight"])
    path.write_text(json.dumps(index))
    if message is None:
        tensors, _ = DiffusersFolder(folder).tensors("unet", torch.float32)
        expected = family("SD 1")[0].unet.state_dict()
        assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in tensors)
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            DiffusersFolder(folder).tensors("unet", torch.float32)
        assert "\n" not in str(error.value)


ODD_FILE_NAMES = st.one_of(
    st.text(max_size=12),
    st.integers(-3, 40),
    st.floats(),
    st.none(),
    st.lists(st.integers(), max_size=2),
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
            2**64,
        ]
    ),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_index_gives_all_tensors_or_one_clear_line(tmp_path, data):
    """An index of two shards whose file names lead elsewhere, are missing, or are not names."""
    shards = {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.ones(3), "z": torch.ones(1)}}
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    for _ in range(data.draw(st.integers(0, 2))):
        index["weight_map"][data.draw(st.sampled_from(["x", "y", "z", "more"]))] = data.draw(ODD_FILE_NAMES)
    content = json.dumps(index).encode()
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "index.json"
    path.write_bytes(content)
    try:
        merged = read_shards(path, torch.float32)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
    else:
        assert {name: t.shape[0] for name, t in merged.items()} == {"x": 2, "y": 3, "z": 1}


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    "content",
    ["another component's weights", "another family's weights", "empty", "folder", "link to nowhere", "a pickle"],
)
def test_anything_else_in_the_place_of_weights_is_one_clear_line(family, tmp_path, component, content):
    folder, other = copy_folder(family("SD 1")[1], tmp_path / "model"), family("SDXL")[1]
    is_text_encoder = component == "text_encoder"
    path = folder / component / ("model.safetensors" if is_text_encoder else WEIGHTS)
    path.unlink()
    if content == "another component's weights":
        shutil.copy(other / ("unet" if component == "vae" else "vae") / WEIGHTS, path)
    elif content == "another family's weights":
        shutil.copy(other / ("text_encoder_2" if is_text_encoder else component) / path.name, path)
        if component == "vae":  # which is the same in both families: with one tensor more
            save_file({**load_file(path), "extra": torch.ones(1)}, path)
    elif content == "empty":
        path.touch()
    elif content == "folder":
        path.mkdir()
    elif content == "link to nowhere":
        path.symlink_to(tmp_path / "nowhere")
    else:
        torch.save({"a": torch.ones(1)}, path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        minip2p.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_model_with_a_sharded_unet_is_loaded(family, sharded_unet, tmp_path):
    pipe, folder, _ = family("SD 1")
    folder = copy_folder(folder, tmp_path / "model")
    shutil.rmtree(folder / "unet")
    copy_folder(sharded_unet, folder / "unet")
    assert same_tensors(minip2p.load(folder).unet, pipe.unet)
