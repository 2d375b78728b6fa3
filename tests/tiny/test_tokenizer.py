"""The reduced CLIP tokenizer that ships in weights/tiny/tokenizer."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from minip2p.io.files import shipped_weights
from minip2p.tiny.tokenizer import WORLD_WORDS, cut_tokenizer, vocabulary

FOLDER = shipped_weights("tiny") / "tokenizer"
TOKENIZER = CLIPTokenizer.from_pretrained(FOLDER)
MERGES = [tuple(line.split()) for line in (FOLDER / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
no_deadline = settings(deadline=None)


def test_it_is_a_small_stable_diffusion_tokenizer():
    vocab = json.loads((FOLDER / "vocab.json").read_text(encoding="utf-8"))
    assert vocab == vocabulary(MERGES) == TOKENIZER.get_vocab()
    assert len(TOKENIZER) == 2 * 256 + len(MERGES) + 2 == 2790 and TOKENIZER.model_max_length == 77
    assert TOKENIZER("A cat.", padding="max_length").input_ids == [
        2788,
        *TOKENIZER.convert_tokens_to_ids(["a</w>", "cat</w>", ".</w>"]),
        *[2789] * 73,
    ]


def test_the_words_of_the_tiny_world_are_single_tokens_as_in_the_full_table():
    assert {word for word in WORLD_WORDS if len(TOKENIZER.tokenize(word)) > 1} == {"cyan", "flowery"}  # as in CLIP


@given(st.text())
@no_deadline
def test_any_text_can_be_tokenized(text):
    text = text.replace("<|", "")  # special tokens are not text
    decoded = TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False, verbose=False).input_ids)
    normalized = TOKENIZER.backend_tokenizer.normalizer.normalize_str(text)
    assert "".join(decoded.split()) == "".join(normalized.split())


@given(st.sets(st.sampled_from(sorted(set(WORLD_WORDS))), min_size=1, max_size=20), st.integers(0, 200))
@settings(deadline=None, max_examples=50)
def test_a_reduced_tokenizer_is_exact_for_its_words(tmp_path_factory, words, first):
    folder = tmp_path_factory.mktemp("tokenizer")
    cut_tokenizer(MERGES, words, folder, first)
    reduced = CLIPTokenizer.from_pretrained(folder)
    assert len(reduced) < len(TOKENIZER)
    assert [reduced.tokenize(word) for word in words] == [TOKENIZER.tokenize(word) for word in words]


def test_words_without_their_merges_split_into_smaller_tokens(tmp_path):
    cut_tokenizer([("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")], ["cat"], tmp_path, first=0)
    reduced = CLIPTokenizer.from_pretrained(tmp_path)
    assert reduced.tokenize("cat dog") == ["cat</w>", "d", "o", "g</w>"]


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"])
def test_the_folder_has_the_files_of_stable_diffusions(name):
    assert (FOLDER / name).is_file()
