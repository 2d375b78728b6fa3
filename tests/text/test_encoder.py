"""The embeddings of prompts are those of transformers; long prompts are cut off with a notice."""

import warnings

import pytest
import torch
from families import PROMPT
from transformers import CLIPTextModel

import minip2p
from minip2p.errors import Notice
from minip2p.io.files import shipped_weights

PROMPTS = ["a cat on the beach", "", "A photo, of TWO dogs!", "cat " * 200]


@pytest.mark.filterwarnings("ignore::minip2p.errors.Notice")  # of the long prompt
def test_the_embedding_is_transformers_last_hidden_state(cpu_model):
    text, expected_model = cpu_model.text, CLIPTextModel.from_pretrained(shipped_weights("tiny") / "text_encoder")
    assert expected_model.dtype == torch.float32  # as its config.json says; the file holds float16
    tokenizer = text.tokenizer
    size = tokenizer.model_max_length
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=size, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = expected_model(tokens.input_ids).last_hidden_state
    embedding = text(PROMPTS)
    assert torch.equal(embedding.tokens, expected) and embedding.tokens.shape == (4, size, text.width)
    assert embedding.pooled is None
    assert torch.equal(text(PROMPTS[0]).tokens, text(PROMPTS[:1]).tokens)


def test_long_prompts_are_cut_to_77_tokens_with_a_notice(model):
    with pytest.warns(Notice, match="is cut off before the word 'dog': the text encoder reads 77 tokens"):
        model.text.prompt("cat " * 75 + "dog dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.text.prompt("cat " * 75)
    with pytest.warns(Notice):
        ids = model.text.prompt("cat " * 200).ids
    assert len(ids) == 77 and ids == model.text.prompt("cat " * 75).ids
    assert ids[0] == model.text.tokenizer.bos_token_id and ids[-1] == model.text.tokenizer.eos_token_id
    with pytest.warns(Notice):
        assert torch.equal(model.text("cat " * 200).tokens, model.text("cat " * 75).tokens)
    assert not torch.equal(model.text("cat " * 75).tokens, model.text("cat " * 74).tokens)


@pytest.mark.parametrize("wrong", [None, 3, b"a cat"])
def test_a_prompt_must_be_text(model, wrong):
    with pytest.raises(ValueError, match="a prompt must be text, not"):
        model.text.prompt(wrong)


def test_an_empty_negative_prompt_of_sdxl_is_zeros(family):
    text = minip2p.load(family("SDXL")[1]).text
    empty, other = text.encode_negative(""), text.encode_negative("fog")
    assert text.zero_empty_prompt and not empty.tokens.any() and not empty.pooled.any()
    assert torch.equal(other.tokens, text("fog").tokens) and torch.equal(other.pooled, text("fog").pooled)
    assert text("").tokens.any() and text("").tokens.shape == empty.tokens.shape


def test_an_empty_negative_prompt_of_stable_diffusion_1_is_an_empty_prompt(model):
    assert torch.equal(model.text.encode_negative("").tokens, model.text("").tokens)


def test_the_embedding_of_two_encoders_is_diffusers(family):
    pipe, folder, _ = family("SDXL")
    embedding = minip2p.load(folder).text([PROMPT, "fog"])
    tokens, _, pooled, _ = pipe.encode_prompt([PROMPT, "fog"], device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(embedding.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedding.pooled, pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["SD 1", "SD 2 base", "SDXL"])
def test_clip_skip_is_counted_from_1_and_diffusers_from_0(family, kind):
    """Clip skip 2 here and in A1111's web UI is `clip_skip=1` in diffusers; 1 is none."""
    pipe, folder, _ = family(kind)
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):  # diffusers expects the names of transformers 4
        object.__setattr__(encoder, "text_model", encoder)
    text = minip2p.load(folder).text
    for skip in (1, 2):
        options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        with torch.no_grad():
            expected = pipe.encode_prompt([PROMPT, "fog"], **options, clip_skip=skip - 1)[0]
        torch.testing.assert_close(text([PROMPT, "fog"], skip).tokens, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(text.encode_negative("fog", skip).tokens, text("fog", skip).tokens)
    assert torch.equal(text(PROMPT).tokens, text(PROMPT, 1).tokens)
    assert not torch.equal(text(PROMPT).tokens, text(PROMPT, 2).tokens)


def test_clip_skip_leaves_at_least_one_layer(model, family):
    assert model.text.max_clip_skip == 3  # of its three layers
    layers = [encoder.layers for encoder in minip2p.load(family("SDXL")[1]).text.clip_encoders]
    assert minip2p.load(family("SDXL")[1]).text.max_clip_skip == min(layers) - 1  # the model's own skips one already


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a caf\udcc3\udca9", "is UTF-8 text that Python read in a locale of another encoding: set PYTHONUTF8=1"),
        ("a caf\udce9", "has bytes in it that are not UTF-8 text"),
        ("a \ud83d", "has bytes in it that are not UTF-8 text"),
    ],
)
def test_bytes_in_a_prompt_are_told_from_text_that_the_locale_did_not_read(model, text, reason):
    with pytest.raises(ValueError, match=reason):
        model.text.prompt(text)
