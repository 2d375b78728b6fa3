"""The words of prompts as the page shows them, and which of them feed which in an edit."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from minip2p.p2p.alignment import infer_kind, refine_alignment, swap_mapper
from minip2p.text.encoder import TextEncoder
from minip2p.text.prompt import Prompt
from minip2p.web.objects import may_be_objects


@dataclass(frozen=True)
class Token:
    """An entry of the attention maps: a word with all of its tokens, punctuation, a mark, or all of the padding.

    word: the number of the word in the prompt. positions: of the tokens.
    """

    text: str
    kind: str
    word: int | None
    positions: tuple[int, ...]

    @property
    def json(self) -> dict[str, Any]:
        return {"text": self.text, "kind": self.kind, "word": self.word}


def words_json(prompt: Prompt) -> list[dict[str, Any]]:
    """The words that the text encoder reads, with their numbers, and whether they are offered as objects."""
    words = [word.text for word in prompt.visible_words]
    offered = zip(words, may_be_objects(words), strict=True)
    return [{"text": word, "index": n, "object": is_object} for n, (word, is_object) in enumerate(offered)]


def tokens_of(prompt: Prompt) -> list[Token]:
    """All tokens of a prompt in order, grouped. Each position belongs to one entry, so shares of attention sum to 1."""
    words = {j: n for n, word in enumerate(prompt.words) for j in range(*word.span)}
    tokens = [Token("start", "start", None, (0,))]
    for j in range(1, prompt.eos):
        n = words.get(j)
        if n is None:
            tokens.append(Token(prompt.tokens[j].strip(), "punctuation", None, (j,)))
        elif tokens[-1].word == n:
            tokens[-1] = replace(tokens[-1], positions=(*tokens[-1].positions, j))
        else:
            tokens.append(Token(prompt.words[n].text, "word", n, (j,)))
    tokens.append(Token("end", "end", None, (prompt.eos,)))
    if padding := tuple(range(prompt.eos + 1, len(prompt.ids))):
        tokens.append(Token("padding", "padding", None, padding))
    return tokens


def own_tokenizer(text: TextEncoder) -> TextEncoder:
    """The text encoder with a copy of its tokenizer, for another thread: two threads must not use the same."""
    first, *others = text.clip_encoders
    return replace(text, clip_encoders=(replace(first, tokenizer=deepcopy(first.tokenizer)), *others))


def align(text: TextEncoder, source: str, target: str) -> dict[str, Any]:
    """Which source word feeds which target word, as the edit does it (`p2p.alignment`).

    links: [i, j, weight] of source word i and target word j: the share of its attention that word i gives to word j.
    Raises ValueError for a prompt that is not text.
    """
    old, new = text.prompt(source), text.prompt(target)
    kind = infer_kind(old, new)
    shares = swap_mapper(old, new) if kind == "swap" else refine_alignment(old, new)[0]
    links = []
    for j, fed in enumerate(new.visible_words):
        for i, word in enumerate(old.visible_words):
            weight = float(shares[slice(*word.span), slice(*fed.span)].sum(1).mean())
            if weight > 0:
                links.append([i, j, round(weight, 4)])
    return {"kind": kind, "source": words_json(old), "target": words_json(new), "links": links}
