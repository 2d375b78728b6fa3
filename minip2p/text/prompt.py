"""Words and tokens: where a word's tokens stand in a prompt.

Users speak of words; attention maps have a column for each token. `parity=True` finds words as the published code of
Prompt-to-Prompt (Hertz et al. 2022) does: it splits on spaces, keeps case and punctuation, and ignores what is missing.

Axis: j tokens. It counts the start token, the end token and the padding.
"""

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from minip2p.validation import is_integer

WordSelector = str | int | slice | range | tuple[str, int]


WORD_JOINERS = "'’-‐‑"  # apostrophes and hyphens: punctuation that may stand inside a word


@dataclass(frozen=True)
class Word:
    """A word as the tokenizer reads it (in lower case) and the positions [start, stop) of its tokens."""

    text: str
    span: tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A prompt, its tokens and its words; punctuation between words is a token, but no word.

    `ids`: what the text encoder takes: start, text, end, padding, cut to the tokenizer's length.
    `tokens`: what each id up to the end token says. `words`: all that were written, also those that the cut left out.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    words: tuple[Word, ...]

    @classmethod
    def tokenize(cls, text: str, tokenizer: Any) -> "Prompt":
        """Reads a prompt with a CLIPTokenizer. ValueError if its tokens cannot be traced back to its words."""
        size = tokenizer.model_max_length
        ids = tokenizer(text, padding="max_length", max_length=size, truncation=True).input_ids
        uncut = tokenizer(text, verbose=False).input_ids
        tokens = tuple(tokenizer.decode([i]) for i in ids[: len(uncut)])
        return cls(text, tuple(ids), tokens, tuple(locate_words(text, uncut, tokenizer)))

    @property
    def eos(self) -> int:
        """The position of the end token; the padding follows it."""
        return len(self.tokens) - 1

    @property
    def visible_words(self) -> tuple[Word, ...]:
        """The words that the text encoder reads, and reads to their last token."""
        return tuple(word for word in self.words if word.span[1] <= self.eos)

    def token_indices(self, word: WordSelector) -> tuple[int, ...]:
        """The positions of a word's tokens.

        word: text, case aside: each place where it stands, and it may be several words in a row ("red car");
        "cat#2" or ("cat", 2): its second place; an int, a range or a slice: words by index, from 0.
        Raises ValueError if there is no such word, or if it was cut off as the prompt has too many tokens.
        """
        place = isinstance(word, tuple) and len(word) == 2 and isinstance(word[0], str) and not isinstance(word[1], str)
        if not (place or is_integer(word) or isinstance(word, str | slice | range)):
            raise ValueError(f"a word is given as text, as (text, n), by index or by a range, not as {word!r}")
        places = self._by_text(word) if isinstance(word, str | tuple) else self._by_index(word)
        whole = [place for place in places if all(n < len(self.visible_words) for n in place)]
        if not whole:
            raise ValueError(f"{word!r} lies beyond the last of the {len(self.ids)} tokens that the text encoder reads")
        return tuple(sorted({j for place in whole for n in place for j in range(*self.words[n].span)}))

    def _by_index(self, which: int | slice | range) -> list[Sequence[int]]:
        indices = range(len(self.words))
        try:
            several: Any = which if isinstance(which, range) else [which]
            chosen = indices[which] if isinstance(which, slice) else [indices[n] for n in several]
        except IndexError:
            chosen = []
        if not chosen:
            raise ValueError(f"there is no word {which} in the prompt {self.text!r}, which has {len(indices)} words")
        return [chosen]

    def _by_text(self, which: str | tuple[str, int]) -> list[Sequence[int]]:
        """The places of a word, or of several in a row, as word indices; all of them, or the n-th only."""
        text, nth = which if isinstance(which, tuple) else split_occurrence(which)
        folded = normalize_text(text)
        wanted = [folded[a:b] for a, b in word_spans(folded)]
        have = [normalize_text(word.text) for word in self.words]
        places: list[Sequence[int]] = [
            range(n, n + len(wanted)) for n in range(len(have)) if wanted and have[n : n + len(wanted)] == wanted
        ]
        if not places:
            raise ValueError(f"{text!r} is not in the prompt {self.text!r}; its words are: {', '.join(have)}")
        if nth is not None and not 1 <= nth <= len(places):
            raise ValueError(f"{text!r} number {nth} is not in the prompt {self.text!r}, which has {len(places)} of it")
        return places if nth is None else [places[nth - 1]]


def byte_alphabet() -> dict[int, str]:
    """Byte -> the visible character that stands for it in CLIP's vocabulary (and GPT-2's), in its order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def normalize_text(text: str) -> str:
    """Text as words are compared: without case, accents composed, one kind of apostrophe."""
    return unicodedata.normalize("NFC", text).casefold().replace("’", "'")


def locate_words(text: str, ids: Sequence[int], tokenizer: Any) -> list[Word]:
    """All words of a text, their tokens found in `ids` (uncut, with start and end).

    No token spans a space, so the text is tokenized chunk by chunk between spaces. What a chunk reads is taken from its
    tokens' own bytes, so nothing is assumed of how the tokenizer folds case or composes accents.
    """
    spaced = re.findall(r"[\S\x1c-\x1f]+", text)  # four separators are spaces for Python and not for CLIP
    chunks = [tokenizer(chunk, add_special_tokens=False, verbose=False).input_ids for chunk in spaced]
    if [i for chunk in chunks for i in chunk] != list(ids[1:-1]):
        raise ValueError(f"the tokens of {text!r} cannot be told apart by its spaces")
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    words, start = [], 1
    for chunk in chunks:
        names = tokenizer.convert_ids_to_tokens(chunk)
        words += chunk_words([bytes(byte_of[c] for c in name.removesuffix("</w>")) for name in names], start)
        start += len(chunk)
    return words


def chunk_words(tokens: Sequence[bytes], start: int) -> list[Word]:
    """The words in a chunk of tokens, the first of which stands at `start`.

    A token belongs to the word of its first letter: CLIP reads 'small' as 's + mall + ', whose first two are the word.
    """
    text = b"".join(tokens).decode()
    spans = word_spans(text)
    owner_of_character = {n: owner for owner, span in enumerate(spans) for n in range(*span)}
    owners = [owner_of_character.get(n) for n, character in enumerate(text) for _ in character.encode()]  # by byte
    positions: list[list[int]] = [[] for _ in spans]
    for n, (a, b) in enumerate(pairwise(accumulate(map(len, tokens), initial=0))):
        owner = next((o for o in owners[a:b] if o is not None), None)
        if owner is not None:
            positions[owner].append(start + n)
    if not all(positions):
        raise ValueError(f"the words of {text!r} share a token")
    return [Word(text[a:b], (at[0], at[-1] + 1)) for (a, b), at in zip(spans, positions, strict=True)]


def word_spans(text: str) -> list[tuple[int, int]]:
    """[start, stop) of each word: what is no space and no punctuation, with single apostrophes and hyphens inside."""

    def kind(c: str) -> str:
        mark = c.isspace() or c in string.punctuation or unicodedata.category(c).startswith("P")
        return "-" if c in WORD_JOINERS else " " if mark else "w"

    return [match.span() for match in re.finditer("w+(?:-w+)*", "".join(map(kind, text)))]


def split_occurrence(text: str) -> tuple[str, int | None]:
    """A word and which of its places is meant: "cat#2" -> ("cat", 2), "cat" -> ("cat", None)."""
    word, sign, nth = text.rpartition("#")
    return (word, int(nth)) if sign and nth.isdecimal() else (text, None)


def token_indicator(prompt: Prompt, words: Iterable[Any]) -> Tensor:
    """1_word for each word: words j, 1 at the word's tokens. Raises ValueError for a word that is not there."""
    found = [prompt.token_indices(word) for word in words]
    out = torch.zeros(len(found), len(prompt.ids))
    for row, tokens in enumerate(found):
        out[row, list(tokens)] = 1
    return out
