"""The text files of a checkpoint as the editors of other systems write them."""

import json

import pytest
import torch
from families import copy_folder
from safetensors.torch import load_file, save_file

import minip2p
from minip2p.checkpoints.diffusers_folder import read_shards
from minip2p.checkpoints.lora import adapter_settings
from minip2p.io.files import shipped_weights

TINY = shipped_weights("tiny")
CAT = "a cat on the beach"
TEXT_FILES = sorted(str(path.relative_to(TINY)) for path in TINY.rglob("*") if path.suffix in (".json", ".txt"))


def rewrite(file, change):
    """Changes the bytes of a file that may be a link."""
    content = change(file.read_bytes())
    file.unlink()
    file.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """A copy of the model that ships, whose text files may be changed."""
    copy_folder(TINY, tmp_path / "model")
    for name in TEXT_FILES:
        file = tmp_path / "model" / name
        if file.parent.is_symlink():
            target = file.parent.resolve()
            file.parent.unlink()
            copy_folder(target, file.parent)
    return tmp_path / "model"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\r"),
    ],
    ids=["byte-order mark", "CRLF", "CR"],
)
def test_all_text_files_of_a_model_may_be_written_by_any_editor(folder, cpu_model, change):
    for name in TEXT_FILES:
        rewrite(folder / name, change)
    pipe = minip2p.load(folder)
    for prompt in (CAT, "a red car on the street at night, watercolor"):
        assert pipe.text.prompt(prompt).ids == cpu_model.text.prompt(prompt).ids
    latents = [
        each.generate(CAT, steps=1).latents for each in (pipe, cpu_model)
    ]  # by the guidance scale of minip2p.json
    assert torch.equal(*latents)


@pytest.mark.parametrize("name", [name for name in TEXT_FILES if name != "model_index.json"])  # SDXL reads it
def test_utf_16_is_refused_in_one_line_that_names_the_file(folder, name):
    rewrite(folder / name, lambda content: content.decode().encode("utf-16"))
    with pytest.raises(ValueError) as error:
        minip2p.load(folder)
    assert str(error.value) == f"{folder / name}: is UTF-16 text; save it as UTF-8"


def test_an_index_and_the_settings_of_an_adapter_may_have_a_byte_order_mark(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    save_file({"x": torch.ones(1)}, file, {"lora_adapter_metadata": '\ufeff{"r": 3}'})
    assert adapter_settings(file) == {"r": 3}
    (tmp_path / "adapter_config.json").write_text('{"r": 2}', encoding="utf-8-sig")
    assert adapter_settings(file) == {"r": 2}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": file.name}}), encoding="utf-8-sig")
    assert read_shards(index, torch.float32).keys() == load_file(file).keys()
