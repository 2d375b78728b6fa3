"""How tokenizers and text encoders are loaded: strictly, with and without name prefixes, one clear line if broken."""

import json
import os
import subprocess
import sys

import pytest
import torch
from families import PROMPT, REMOVED, copy_folder, update_json
from paths import ROOT
from safetensors.torch import load_file, save_file

import minip2p
from minip2p.checkpoints.diffusers_folder import DiffusersFolder
from minip2p.checkpoints.text_encoders import load_text
from minip2p.io.files import shipped_weights

TINY = shipped_weights("tiny")


@pytest.fixture
def folder(tmp_path):
    """A folder whose text encoder may be changed. The tokenizer is a link to the embedded one."""
    (tmp_path / "tokenizer").symlink_to(TINY / "tokenizer")
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_bytes((TINY / "text_encoder/config.json").read_bytes())
    save_file(load_file(TINY / "text_encoder/model.safetensors"), tmp_path / "text_encoder/model.safetensors")
    return tmp_path


def rewrite_weights(folder, change):
    path = folder / "text_encoder/model.safetensors"
    save_file(change(load_file(path)), path)


def load(folder, dtype=torch.float32):
    return load_text(DiffusersFolder(folder), dtype=dtype)[0]


# Weights


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {"text_model." + name.removeprefix("text_model."): t for name, t in tensors.items()},
        lambda tensors: {name.removeprefix("text_model."): t for name, t in tensors.items()},
        lambda tensors: tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]},
    ],
    ids=["prefixed", "not prefixed", "with the buffer of old files"],
)
def test_weights_are_read_with_and_without_their_prefix(cpu_model, folder, change):
    rewrite_weights(folder, change)
    assert torch.equal(load(folder)("a cat").tokens, cpu_model.text("a cat").tokens)


def first_mlp(tensors):
    return next(name for name in tensors if name.endswith("fc1.weight"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {n: t[n] for n in t if n != first_mlp(t)}, "fc1.weight is missing"),
        (lambda t: t | {"text_projection.weight": torch.ones(1)}, "text_projection.weight is not a tensor of"),
        (lambda t: t | {first_mlp(t): torch.ones(2, 3)}, r"fc1.weight has shape \(2, 3\) where the config"),
    ],
    ids=["missing", "unknown", "wrong shape"],
)
def test_weights_are_read_strictly(folder, change, message):
    rewrite_weights(folder, change)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert str(folder / "text_encoder/model.safetensors") in str(error.value) and "\n" not in str(error.value)


def test_the_encoder_has_the_requested_dtype_and_is_ready_for_inference(folder):
    text = load(folder, torch.bfloat16)
    network = text.encoders["text_encoder"]
    assert text("a cat").tokens.dtype == torch.bfloat16
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def test_loading_draws_no_random_number(folder):
    state = torch.get_rng_state()
    load(folder)("a cat")
    assert torch.equal(torch.get_rng_state(), state)


def test_transformers_is_imported_only_when_a_model_is_loaded():
    """It takes seconds, and the command line imports the pipeline before it knows whether a model is needed."""
    script = "import sys, minip2p.pipeline; print('transformers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


# Configurations


def test_a_broken_configuration_or_file_is_one_clear_line(folder):
    config, weights = folder / "text_encoder/config.json", folder / "text_encoder/model.safetensors"
    valid = config.read_text()
    config.write_text(json.dumps(json.loads(valid) | {"num_attention_heads": 7}))
    with pytest.raises(ValueError, match="cannot build the text encoder") as error:
        load(folder)
    assert str(config) in str(error.value) and "\n" not in str(error.value)
    config.write_text(valid[:20])
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load(folder)
    config.write_text(valid)
    weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        load(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"architectures": 3},
        {"eos_token_id": None},
        {"num_hidden_layers": 10**5},
    ],
)
def test_an_odd_configuration_is_one_clear_line(family, tmp_path, fields):
    folder = copy_folder(family("SDXL")[1], tmp_path / "odd")
    update_json(folder / "text_encoder_2/config.json", **fields)
    with pytest.raises(ValueError) as error:
        load(folder)
    assert "text_encoder_2" in str(error.value) and "\n" not in str(error.value)


def test_fields_that_concern_training_and_output_change_nothing(family, tmp_path):
    folder = copy_folder(family("SD 1")[1], tmp_path / "odd")
    fields = {"return_dict": False, "output_hidden_states": True, "attention_dropout": 0.5}
    update_json(folder / "text_encoder/config.json", **fields)
    assert torch.equal(load(folder)(PROMPT).tokens, load(family("SD 1")[1])(PROMPT).tokens)


# Tokenizers


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"], ids=["empty", "a list", "no text"])
def test_a_broken_vocabulary_is_one_clear_line(folder, content):
    (folder / "tokenizer").unlink()
    copy_folder(TINY / "tokenizer", folder / "tokenizer")
    (folder / "tokenizer/vocab.json").write_bytes(content)
    with pytest.raises(
        ValueError, match="tokenizer: cannot be read as a tokenizer|vocab.json: is not UTF-8 text"
    ) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "length, message",
    [
        (40, "its tokenizers cut prompts to 77 and 40 tokens"),
        (99, "model_max_length is 99, but the text encoder takes 77 tokens"),
    ],
)
def test_a_tokenizer_of_another_length_is_one_clear_line(family, tmp_path, length, message):
    folder = copy_folder(family("SDXL")[1], tmp_path / "odd")
    update_json(folder / "tokenizer_2/tokenizer_config.json", model_max_length=length)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_more_tokens_than_the_encoder_has_is_one_clear_line(family, tmp_path):
    folder = copy_folder(family("SD 1")[1], tmp_path / "odd")
    update_json(folder / "text_encoder/config.json", vocab_size=100, eos_token_id=99)
    weights = folder / "text_encoder/model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("token_embedding.weight"))
    save_file(tensors | {name: tensors[name][:100].clone()}, weights)
    with pytest.raises(ValueError, match="tokenizer: has .* tokens, but the text encoder has 100"):
        minip2p.load(folder)


@pytest.mark.parametrize("length", [REMOVED, 10**30], ids=["absent", "the huge number that transformers writes"])
def test_the_length_of_a_tokenizer_that_states_none_is_the_encoders(family, tmp_path, length):
    folder = copy_folder(family("SD 1")[1], tmp_path / "odd")
    update_json(folder / "tokenizer/tokenizer_config.json", model_max_length=length)
    text = load(folder)
    assert text.clip_encoders[0].max_tokens == 77 == len(text.prompt(PROMPT).ids)
    assert torch.equal(text(PROMPT).tokens, load(family("SD 1")[1])(PROMPT).tokens)
