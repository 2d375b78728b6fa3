"""A prompt's words and the positions of their tokens.

Users name words; attention maps have one column per token. This file maps one to the other. The published
Prompt-to-Prompt code (Hertz et al. 2022) does it differently: it splits on spaces, keeps case and punctuation, and
ignores missing words. `parity=True` follows that code; see `minip2p.p2p.published`.

Axis: j tokens. Positions count the start token, the end token and the padding.
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

WordSelector = str | int | slice | range | tuple[str, int]  # see `Prompt.token_indices`

WORD_JOINERS = "'’-‐‑"  # apostrophes and hyphens: the punctuation that a word may contain


@dataclass(frozen=True)
class Word:
    """A word, in lower case as the tokenizer reads it, and the positions [start, stop) of its tokens."""

    text: str
    span: tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A prompt with its tokens and words. Punctuation between words has tokens but is not a word.

    ids: the token ids that the text encoder takes: start, text, end, padding; truncated to the tokenizer's length.
    tokens: the text of each id up to and including the end token.
    words: all words of the text, including those that the truncation cuts off.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    words: tuple[Word, ...]

    @classmethod
    def tokenize(cls, text: str, tokenizer: Any) -> "Prompt":
        """Reads a prompt with a CLIPTokenizer. Raises ValueError if its tokens cannot be assigned to its words."""
        ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
        all_ids = tokenizer(text, verbose=False).input_ids  # neither padded nor truncated
        tokens = tuple(tokenizer.decode([i]) for i in ids[: len(all_ids)])
        return cls(text, tuple(ids), tokens, tuple(locate_words(text, all_ids, tokenizer)))

    @property
    def eos(self) -> int:
        """The position of the end token; the padding follows it."""
        return len(self.tokens) - 1

    @property
    def visible_words(self) -> tuple[Word, ...]:
        """The words that the truncation keeps, with all of their tokens."""
        return tuple(word for word in self.words if word.span[1] <= self.eos)

    def token_indices(self, word: WordSelector) -> tuple[int, ...]:
        """The sorted positions of a word's tokens.

        word selects by text: "cat" is every occurrence, ignoring case; "red car" is several words in a row; "cat#2" or
        ("cat", 2) is the second occurrence. It selects by number: an int, a range or a slice counts words from 0.
        Raises ValueError if there is no such word, if the truncation cut all of its occurrences off, or for another
        type.
        """
        nth = isinstance(word, tuple) and len(word) == 2 and isinstance(word[0], str) and not isinstance(word[1], str)
        if not (nth or is_integer(word) or isinstance(word, str | slice | range)):
            raise ValueError(f"a word is given as text, as (text, n), by index or by a range, not as {word!r}")
        matches = self._matches_of_text(word) if isinstance(word, str | tuple) else [self._indices_of_number(word)]
        visible = [match for match in matches if all(n < len(self.visible_words) for n in match)]
        if not visible:
            raise ValueError(f"{word!r} lies beyond the last of the {len(self.ids)} tokens that the text encoder reads")
        return tuple(sorted({j for match in visible for n in match for j in range(*self.words[n].span)}))

    def _indices_of_number(self, number: int | slice | range) -> Sequence[int]:
        """The word indices that an int (negative counts from the end), a range or a slice selects."""
        indices = range(len(self.words))
        try:
            if isinstance(number, slice):
                selected: Sequence[int] = indices[number]
            else:
                selected = [indices[n] for n in (number if isinstance(number, range) else [number])]
        except IndexError:
            selected = []
        if not selected:
            raise ValueError(f"there is no word {number} in the prompt {self.text!r}, which has {len(indices)} words")
        return selected

    def _matches_of_text(self, selector: str | tuple[str, int]) -> list[Sequence[int]]:
        """The occurrences of a word, or of several words in a row, each as word indices: all, or the n-th only."""
        text, nth = selector if isinstance(selector, tuple) else split_occurrence(selector)
        normalized = normalize_text(text)
        phrase = [normalized[a:b] for a, b in word_spans(normalized)]
        words = [normalize_text(word.text) for word in self.words]
        matches: list[Sequence[int]] = [
            range(n, n + len(phrase)) for n in range(len(words)) if phrase and words[n : n + len(phrase)] == phrase
        ]
        if not matches:
            raise ValueError(f"{text!r} is not in the prompt {self.text!r}; its words are: {', '.join(words)}")
        if nth is not None and not 1 <= nth <= len(matches):
            raise ValueError(
                f"{text!r} number {nth} is not in the prompt {self.text!r}, which has {len(matches)} of it"
            )
        return matches if nth is None else [matches[nth - 1]]


def byte_alphabet() -> dict[int, str]:
    """Byte -> the printable character that represents it in the vocabularies of CLIP and GPT-2, in their order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def normalize_text(text: str) -> str:
    """Text as words are compared: case-folded, with composed accents (NFC) and one kind of apostrophe."""
    return unicodedata.normalize("NFC", text).casefold().replace("’", "'")


def locate_words(text: str, ids: Sequence[int], tokenizer: Any) -> list[Word]:
    """All words of a text with the positions of their tokens in `ids` (not truncated, with start and end token).

    No token spans a space, so each chunk between spaces is tokenized separately. The text of a chunk is taken from the
    bytes of its tokens, so nothing is assumed of how the tokenizer folds case or composes accents.
    Raises ValueError if the chunks' tokens differ from those of the text.
    """
    texts = re.findall(r"[\S\x1c-\x1f]+", text)  # the separators \x1c-\x1f are spaces in Python, but not in CLIP
    chunks = [tokenizer(chunk, add_special_tokens=False, verbose=False).input_ids for chunk in texts]
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
    """The words in a chunk of tokens, whose first one has position `start`.

    A token belongs to the word of its first letter: CLIP reads 'small' in quotes as ['s] [mall] ['], and the first two
    tokens are the word. Raises ValueError if a word has no token of its own.
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
    """[start, stop) of each word: a run of characters that are neither space nor punctuation.

    A single apostrophe or hyphen (WORD_JOINERS) between such characters belongs to the word.
    """

    def kind(c: str) -> str:
        if c in WORD_JOINERS:
            return "-"
        separates = c.isspace() or c in string.punctuation or unicodedata.category(c).startswith("P")
        return " " if separates else "w"

    return [match.span() for match in re.finditer("w+(?:-w+)*", "".join(map(kind, text)))]


def split_occurrence(text: str) -> tuple[str, int | None]:
    """A word and the number of its occurrence: "cat#2" -> ("cat", 2), "cat" -> ("cat", None)."""
    word, sign, nth = text.rpartition("#")
    return (word, int(nth)) if sign and nth.isdecimal() else (text, None)


def token_indicator(prompt: Prompt, words: Iterable[Any]) -> Tensor:
    """1_word of each word, words j: 1 at the word's tokens, 0 elsewhere. Raises ValueError for a missing word."""
    positions = [prompt.token_indices(word) for word in words]
    out = torch.zeros(len(positions), len(prompt.ids))
    for row, indices in enumerate(positions):
        out[row, list(indices)] = 1
    return out
