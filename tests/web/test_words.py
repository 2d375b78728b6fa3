"""Words and their alignment, as the page shows them."""

import pytest

from minip2p.web.words import align, own_tokenizer, tokens_of, words_json


@pytest.mark.filterwarnings("ignore:the prompt .* is cut off")
def test_every_position_belongs_to_exactly_one_token(model):
    for text in ("", "a cat", "a 'red' cat, on a beach.", "a cat " * 60):
        prompt = model.text.prompt(text)
        tokens = tokens_of(prompt)
        assert sorted(j for token in tokens for j in token.positions) == list(range(len(prompt.ids)))
        words = [token.word for token in tokens if token.kind == "word"]
        assert words == sorted(set(words)) and len(words) >= len(prompt.visible_words)
        assert (tokens[0].kind, tokens[0].positions) == ("start", (0,))


@pytest.mark.filterwarnings("ignore:this model was trained without")
def test_a_words_pieces_are_one_entry(model):
    prompt = model.text.prompt("a hippopotamus, on the beach")
    tokens = tokens_of(prompt)
    words = [("a", "word"), ("hippopotamus", "word"), (",", "punctuation"), ("on", "word"), ("the", "word")]
    kinds = [(token.text, token.kind) for token in tokens]
    assert kinds == [("start", "start"), *words, ("beach", "word"), ("end", "end"), ("padding", "padding")]
    assert tokens[2].positions == tuple(range(2, 9))  # hi pp o po t am us
    assert tokens[2].json == {"text": "hippopotamus", "kind": "word", "word": 1}
    assert [word["text"] for word in words_json(prompt)] == ["a", "hippopotamus", "on", "the", "beach"]


@pytest.mark.filterwarnings("ignore:this model was trained without")
def test_alignment_of_a_swap_and_of_a_refinement(model):
    swap = align(model.text, "a cat on grass", "a dog on grass")
    assert swap["kind"] == "swap" and swap["links"] == [[n, n, 1.0] for n in range(4)]
    assert swap["source"][1] == {"text": "cat", "index": 1, "object": True}
    assert [word["object"] for word in swap["target"]] == [False, True, False, True]
    for pair in (("a hippopotamus", "a dog"), ("a dog", "a hippopotamus")):  # 7 tokens and 1
        assert align(model.text, *pair)["links"] == [[0, 0, 1.0], [1, 1, 1.0]]
    refined = align(model.text, "a cat on grass", "a red cat on grass")
    assert refined["kind"] == "refine" and refined["links"] == [[0, 0, 1.0], [1, 2, 1.0], [2, 3, 1.0], [3, 4, 1.0]]
    with pytest.raises(ValueError):
        align(model.text, "\ud800", "a cat")


def test_alignment_has_a_tokenizer_of_its_own(model):
    text = own_tokenizer(model.text)
    assert text.tokenizer is not model.text.tokenizer and text.prompt("a cat").ids == model.text.prompt("a cat").ids
