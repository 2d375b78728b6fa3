"""The text encoder against transformers', and how its weights are read."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from minip2p.checkpoints.diffusers_folder import DiffusersFolder
from minip2p.errors import Notice
from minip2p.text.encoder import TextEncoder

ROOT = Path(__file__).parents[1]
PROMPTS = ["a cat on the beach", "", "A photo, of TWO dogs!", "cat " * 200]


@pytest.fixture
def folder(tmp_path, model):
    """A model folder whose text encoder may be changed. The tokenizer is the embedded one."""
    own = model.text.folder
    (tmp_path / "tokenizer").symlink_to(own / "tokenizer")
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_bytes((own / "text_encoder/config.json").read_bytes())
    save_file(load_file(own / "text_encoder/model.safetensors"), tmp_path / "text_encoder/model.safetensors")
    return tmp_path


def rewrite(folder, change):
    """Writes the text encoder's weights again, changed."""
    path = folder / "text_encoder/model.safetensors"
    save_file(change(load_file(path)), path)


def text(folder, dtype=torch.float32):
    return TextEncoder(DiffusersFolder(folder), dtype=dtype)


@pytest.mark.filterwarnings("ignore::minip2p.errors.Notice")  # of the long one
def test_the_context_is_transformers_last_hidden_state(model):
    theirs = CLIPTextModel.from_pretrained(model.text.folder / "text_encoder")
    assert theirs.dtype == torch.float32  # the folder says so: the file holds float16
    size = model.text.tokenizer.model_max_length
    tokens = model.text.tokenizer(PROMPTS, padding="max_length", max_length=size, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(tokens.input_ids).last_hidden_state
    ours = model.text(PROMPTS)
    print(f"text encoder: at most {(ours - expected).abs().max().item():.1e} apart, allowed 0")
    assert torch.equal(ours, expected) and ours.shape == (4, size, model.text.width)
    assert torch.equal(model.text(PROMPTS[0]), model.text(PROMPTS[:1]))


def test_long_prompts_are_cut_to_77_tokens_and_this_is_said(model):
    with pytest.warns(Notice, match="is read to the word before 'dog': the text encoder takes 77 tokens"):
        model.text.prompt("cat " * 75 + "dog dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.text.prompt("cat " * 75)
    with pytest.warns(Notice):
        ids = model.text.prompt("cat " * 200).ids
    assert len(ids) == 77 and ids == model.text.prompt("cat " * 75).ids
    assert ids[0] == model.text.tokenizer.bos_token_id and ids[-1] == model.text.tokenizer.eos_token_id
    with pytest.warns(Notice):
        assert torch.equal(model.text("cat " * 200), model.text("cat " * 75))
    assert not torch.equal(model.text("cat " * 75), model.text("cat " * 74))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {"text_model." + name.removeprefix("text_model."): t for name, t in tensors.items()},
        lambda tensors: {name.removeprefix("text_model."): t for name, t in tensors.items()},
        lambda tensors: tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]},
    ],
    ids=["prefixed", "not prefixed", "with the former buffer"],
)
def test_weights_are_read_with_and_without_their_prefix(model, folder, change):
    rewrite(folder, change)
    assert torch.equal(text(folder)("a cat"), model.text("a cat"))


def first(tensors, end="fc1.weight"):
    return next(name for name in tensors if name.endswith(end))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda tensors: {n: t for n, t in tensors.items() if n != first(tensors)}, "fc1.weight is missing"),
        (
            lambda tensors: tensors | {"text_projection.weight": torch.ones(1)},
            "text_projection.weight is not a tensor of",
        ),
        (
            lambda tensors: tensors | {first(tensors): torch.ones(2, 3)},
            r"fc1.weight has shape \(2, 3\) where the config",
        ),
    ],
    ids=["missing", "unknown", "mis-shaped"],
)
def test_weights_are_read_strictly(folder, change, says):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=says) as error:
        text(folder)("a cat")
    assert str(folder / "text_encoder/model.safetensors") in str(error.value) and "\n" not in str(error.value)


def test_broken_folders_are_one_clear_line(folder):
    config, weights = folder / "text_encoder/config.json", folder / "text_encoder/model.safetensors"
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"num_attention_heads": 7}))
    with pytest.raises(ValueError, match="cannot build the text encoder") as error:
        text(folder)("a cat")
    assert str(config) in str(error.value) and "\n" not in str(error.value)
    config.write_text(whole[:20])
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        text(folder)
    config.write_text(whole)
    weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        text(folder)("a cat")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        text(folder)


def test_the_dtype_is_the_one_asked_for(folder):
    ours = text(folder, torch.bfloat16)
    assert ours("a cat").dtype == torch.bfloat16
    assert {p.dtype for p in ours.encoders["text_encoder"].parameters()} == {torch.bfloat16}
    assert (
        not any(p.requires_grad for p in ours.encoders["text_encoder"].parameters())
        and not ours.encoders["text_encoder"].training
    )


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"], ids=["empty", "a list", "no text"])
def test_a_broken_vocabulary_is_one_clear_line(folder, content):
    own = (folder / "tokenizer").resolve()
    (folder / "tokenizer").unlink()
    (folder / "tokenizer").mkdir()
    for file in own.iterdir():
        (folder / "tokenizer" / file.name).write_bytes(content if file.name == "vocab.json" else file.read_bytes())
    with pytest.raises(ValueError, match="tokenizer: cannot be read as a tokenizer") as error:
        text(folder)("a cat")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [None, 3, b"a cat"])
def test_a_prompt_must_be_text(model, wrong):
    with pytest.raises(ValueError, match="a prompt must be text, not"):
        model.text.prompt(wrong)


def test_reading_a_prompt_draws_no_random_number(folder):
    state = torch.get_rng_state()
    text(folder)("a cat")
    assert torch.equal(torch.get_rng_state(), state)


def test_transformers_is_imported_when_a_model_is_loaded():
    says = (
        "import sys, minip2p; a = 'transformers' in sys.modules; minip2p.load(); "
        "print(a, 'transformers' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", says], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]
