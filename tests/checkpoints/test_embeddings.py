"""Textual inversion: files with new words, what they change, and the same text embeddings as diffusers."""

import copy
import json

import pytest
import torch
from families import PROMPT, copy_folder
from safetensors.torch import save_file

import minip2p
from minip2p.errors import Notice

WORD = "<my-toy>"


@pytest.fixture
def sd1(family):
    return minip2p.load(family("SD 1")[1])


def random_vectors(n, width, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vectors", [random_vectors(1, 64), random_vectors(3, 64), random_vectors(1, 64)[0]])
def test_the_text_embeddings_are_those_of_diffusers(family, sd1, tmp_path, vectors):
    """Of one vector, of several, and of a vector without the axis of vectors; twice in a prompt, and cut off."""
    save_file({WORD: vectors}, tmp_path / "learned_embeds.safetensors")
    pipe = family("SD 1")[0]
    theirs = type(pipe)(
        **{name: copy.deepcopy(part) for name, part in pipe.components.items() if name != "tokenizer"}
        | {"tokenizer": type(pipe.tokenizer).from_pretrained(family("SD 1")[1] / "tokenizer")},
        requires_safety_checker=False,
    )
    theirs.load_textual_inversion(str(tmp_path), weight_name="learned_embeds.safetensors")
    actual = sd1.with_embedding(tmp_path)
    for prompt in (f"a {WORD} on the beach", f"{WORD}, a cat and a {WORD}'s hat", f"{WORD} " * 40, PROMPT):
        expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
        torch.testing.assert_close(actual.text(prompt).tokens, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(actual.text(PROMPT).tokens, sd1.text(PROMPT).tokens)


def test_both_text_encoders_of_sdxl_get_their_vectors_as_in_diffusers(family, tmp_path):
    pipe, folder, _ = family("SDXL")
    first, second = random_vectors(2, 64), random_vectors(2, 128)
    save_file({"clip_l": first, "clip_g": second}, tmp_path / "toy.safetensors")
    parts = {name: copy.deepcopy(part) for name, part in pipe.components.items() if "tokenizer" not in name}
    tokenizers = {n: type(pipe.tokenizer).from_pretrained(folder / n) for n in ("tokenizer", "tokenizer_2")}
    theirs = type(pipe)(**parts, **tokenizers, add_watermarker=False)
    theirs.load_textual_inversion({WORD: first}, text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer)
    theirs.load_textual_inversion({WORD: second}, text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2)
    actual = minip2p.load(folder).with_embedding(tmp_path / "toy.safetensors", WORD)
    expected, _, pooled, _ = theirs.encode_prompt(f"a {WORD} on the beach", do_classifier_free_guidance=False)
    embedding = actual.text(f"a {WORD} on the beach")
    torch.testing.assert_close(embedding.tokens, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedding.pooled, pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["emb_params", "emp_params", "string_to_param.*", "*"])
def test_a_file_without_its_word_has_the_name_of_the_file_and_says_so(sd1, tmp_path, key):
    save_file({key: random_vectors(2, 64)}, tmp_path / "EasyNegative.safetensors")
    with pytest.warns(Notice, match="the word for it in prompts is 'EasyNegative', the name of the file"):
        pipe = sd1.with_embedding(tmp_path / "EasyNegative.safetensors")
    assert pipe.text.prompt("a cat, EasyNegative").token_indices("easynegative") == (4, 5)
    named = sd1.with_embedding(tmp_path / "EasyNegative.safetensors", token="<bad>")
    assert torch.equal(named.text("a <bad> cat").tokens, pipe.text("a EasyNegative cat").tokens)


def test_diffusers_training_scripts_name_the_tensors_by_their_encoders(family, tmp_path):
    pipe = minip2p.load(family("SDXL")[1])
    tensors = {"text_encoders_0": random_vectors(1, 64), "text_encoders_1": random_vectors(1, 128)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({"clip_l": tensors["text_encoders_0"], "clip_g": tensors["text_encoders_1"]}, tmp_path / "b.safetensors")
    first, second = (pipe.with_embedding(tmp_path / f"{name}.safetensors", WORD) for name in "ab")
    assert torch.equal(first.text(WORD).tokens, second.text(WORD).tokens)


def test_onetrainers_output_embeddings_are_passed_over_aloud(sd1, tmp_path):
    tensors = {"emp_params": random_vectors(1, 64), "emp_params_out": random_vectors(1, 64)}
    save_file(tensors, tmp_path / "toy.safetensors")
    with pytest.warns(Notice, match="output embeddings are not read"):
        pipe = sd1.with_embedding(tmp_path / "toy.safetensors", WORD)
    assert len(pipe.text.tokenizer) == len(sd1.text.tokenizer) + 1


def test_the_model_does_not_change_and_shares_its_weights(sd1, tmp_path):
    save_file({WORD: random_vectors(2, 64)}, tmp_path / "a.safetensors")
    before = {name: t.clone() for name, t in sd1.text.encoders["text_encoder"].state_dict().items()}
    tokens, words = sd1.text(f"a {WORD}").tokens, len(sd1.text.tokenizer)
    pipe = sd1.with_embedding(tmp_path / "a.safetensors")
    after = sd1.text.encoders["text_encoder"].state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items()) and len(sd1.text.tokenizer) == words
    assert torch.equal(sd1.text(f"a {WORD}").tokens, tokens) and not torch.equal(pipe.text(f"a {WORD}").tokens, tokens)
    shared = pipe.text.encoders["text_encoder"].state_dict()
    assert [n for n in after if after[n].data_ptr() != shared[n].data_ptr()] == ["embeddings.token_embedding.weight"]
    assert pipe.unet is sd1.unet and pipe.components.fingerprint != sd1.components.fingerprint
    assert pipe.origin.labels == sd1.origin.labels | {"Embedding": f"{WORD} (a.safetensors)"}


def test_several_embeddings_and_a_lora_add_up(sd1, tmp_path):
    for n, word in enumerate(("<a>", "<b>")):
        save_file({word: random_vectors(2, 64, n)}, tmp_path / f"{n}.safetensors")
    layer = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(1, 64), f"{layer}.lora_B.weight": torch.ones(64, 1)},
        tmp_path / "l.safetensors",
    )
    first_pipe = sd1.with_embedding(tmp_path / "0.safetensors").with_embedding(tmp_path / "1.safetensors")
    two = first_pipe.merged(tmp_path / "l.safetensors")
    three = sd1.merged(tmp_path / "l.safetensors").with_embedding(tmp_path / "0.safetensors")
    three = three.with_embedding(tmp_path / "1.safetensors")
    assert first_pipe.text.prompt("a <a> <b>").token_indices("b") == (4, 5)
    assert torch.equal(two.text("a <a> <b>").tokens, three.text("a <a> <b>").tokens)
    assert not torch.equal(two.text("a <a> <b>").tokens, first_pipe.text("a <a> <b>").tokens)


def test_a_word_can_be_edited_and_the_model_is_saved_with_it(sd1, tmp_path):
    save_file({"‹猫>": random_vectors(2, 64)}, tmp_path / "a.safetensors")
    pipe = sd1.with_embedding(tmp_path / "a.safetensors")
    run = pipe.generate("a cat on the beach", steps=2)
    edited = pipe.edit(run, "a ‹猫> on the beach", reweight={"‹猫>": 2})
    assert not torch.equal(edited.latents, run.latents)
    pipe.save(tmp_path / "saved")
    reopened = minip2p.load(tmp_path / "saved")
    assert torch.equal(reopened.text("a ‹猫> cat").tokens, pipe.text("a ‹猫> cat").tokens)


def test_the_pooled_embedding_is_that_of_the_end_of_the_text(family, tmp_path):
    """Official configurations of SDXL state 2 as the end token, for which transformers takes the largest id."""
    pipe = minip2p.load(family("SDXL")[1])
    save_file({"clip_l": random_vectors(1, 64), "clip_g": random_vectors(1, 128)}, tmp_path / "a.safetensors")
    expected = pipe.with_embedding(tmp_path / "a.safetensors", WORD).text(f"a {WORD} cat").pooled
    for module in pipe.text.encoders["text_encoder_2"].modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    pipe.text.encoders["text_encoder_2"].config.eos_token_id = 2
    extended = pipe.with_embedding(tmp_path / "a.safetensors", WORD)
    assert torch.equal(extended.text(f"a {WORD} cat").pooled, expected)


def test_a_word_that_would_be_a_vector_of_another_one_is_refused(sd1, tmp_path):
    """toy_1 after toy: a prompt with toy would read both. diffusers does not notice that."""
    save_file({"emb_params": random_vectors(2, 64)}, tmp_path / "a.safetensors")
    pipe = sd1.with_embedding(tmp_path / "a.safetensors", "toy")
    with pytest.raises(
        ValueError,
        match="a.safetensors: toy_2 would be read as one more vector of toy: give the embedding another word in P",
    ):
        pipe.with_embedding(tmp_path / "a.safetensors", "toy_2")
    for word in ("toy_3", "toy_02", "toy_x", "pet_1"):
        extended = pipe.with_embedding(tmp_path / "a.safetensors", word)
        assert torch.equal(extended.text("a toy").tokens, pipe.text("a toy").tokens)
    with pytest.raises(
        ValueError, match="toy_1 is already in the tokenizer's vocabulary: give the embedding another word"
    ):
        pipe.with_embedding(tmp_path / "a.safetensors", "toy_1")
    with pytest.raises(ValueError, match="<pet>_1 is already in the tokenizer's vocabulary"):
        sd1.with_embedding(tmp_path / "a.safetensors", "<pet>_1").with_embedding(tmp_path / "a.safetensors", "<pet>")


def test_a_tokenizer_without_a_stated_length_keeps_that_of_its_encoder(family, tmp_path):
    folder = copy_folder(family("SD 1")[1], tmp_path / "model")
    config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    save_file({WORD: random_vectors(2, 64)}, tmp_path / "a.safetensors")
    pipe = minip2p.load(folder)
    extended = pipe.with_embedding(tmp_path / "a.safetensors")
    assert extended.text(f"a {WORD}").tokens.shape == pipe.text("a cat").tokens.shape


def test_the_two_text_encoders_of_sdxl_get_as_many_vectors(family, tmp_path):
    save_file({"clip_l": random_vectors(1, 64), "clip_g": random_vectors(2, 128)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors: has different numbers of vectors for the two text encoders"):
        minip2p.load(family("SDXL")[1]).with_embedding(tmp_path / "a.safetensors", WORD)


@pytest.mark.parametrize(
    "tensors, word, message",
    [
        ({WORD: torch.ones(1, 32)}, None, r"shape \(1, 32\), but text_encoder reads vectors of 64 numbers"),
        ({WORD: torch.ones(80, 64)}, None, "and 75 of them at most"),
        ({WORD: torch.full((1, 64), torch.nan)}, None, "is not finite"),
        ({WORD: torch.ones(1, 64, dtype=torch.int64)}, None, "not of a floating-point dtype"),
        (
            {"clip_l": torch.ones(1, 64), "clip_g": torch.ones(1, 64)},
            WORD,
            "is an embedding for SDXL .two text encoders",
        ),
        (
            {"a": torch.ones(1, 64), "b": torch.ones(1, 64)},
            None,
            "is not a textual-inversion embedding: it has 2 tensors",
        ),
        ({}, None, "it has 0 tensors"),
        ({"cat": torch.ones(1, 64)}, None, "cat is already in the tokenizer's vocabulary"),
        ({WORD: torch.ones(1, 64)}, " x", "is text without spaces around it, not ' x'"),
        ({WORD: torch.ones(1, 64)}, "", "is text without spaces around it, not ''"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_line(sd1, tmp_path, tensors, word, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        sd1.with_embedding(tmp_path / "a.safetensors", word)
    assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["<my-toy>", "toyz", "MyToy", "my toy", "sks_style", "猫", "v1.2"])
def test_the_model_that_ships_knows_the_word_of_an_embedding(model, tmp_path, word):
    """It warns of words that it was not trained with."""
    save_file({word: torch.ones(2, model.text.width)}, tmp_path / "a.safetensors")
    extended = model.with_embedding(tmp_path / "a.safetensors")
    for text in (f"a {word} on the beach", f"{word.upper() if word.isalpha() else word}, a cat"):
        assert not extended.text.unknown_words(extended.text.prompt(text))
    assert extended.text.unknown_words(extended.text.prompt(f"two cats, a {word}")) == ["two", "cats"]
    assert model.text.unknown_words(model.text.prompt(f"a {word}"))


def test_a_word_that_is_the_files_name_can_be_changed_by_renaming_the_file(sd1, tmp_path):
    save_file({"emb_params": torch.ones(1, 64)}, tmp_path / "cat.safetensors")
    with (
        pytest.warns(Notice, match="the name of the file"),
        pytest.raises(
            ValueError, match="cat is already in the tokenizer's vocabulary: rename the file, or give the emb"
        ),
    ):
        sd1.with_embedding(tmp_path / "cat.safetensors")


def test_a_missing_file_a_pickled_one_and_a_lora_are_one_clear_line(sd1, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors: no such file: there is no embedding"):
        sd1.with_embedding(tmp_path / "nowhere.safetensors")
    (tmp_path / "toy.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="toy.pt: is a pickle, which can run any program"):
        sd1.with_embedding(tmp_path / "toy.pt")
    save_file(
        {"lora_unet_x.lora_up.weight": torch.ones(1), "lora_unet_x.alpha": torch.ones(1)}, tmp_path / "l.safetensors"
    )
    with pytest.raises(ValueError, match="is not a textual-inversion embedding: it has 2 tensors .lora_unet_x"):
        sd1.with_embedding(tmp_path / "l.safetensors")
    save_file({"emb_params": torch.ones(1, 64)}, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="is a textual-inversion embedding: give it with --embedding"):
        sd1.merged(tmp_path / "e.safetensors")
