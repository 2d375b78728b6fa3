"""A prompt's words and the positions of their tokens.

Users name words; attention maps have one column per token. This file maps one to the other. The published
Prompt-to-Prompt code (Hertz et al. 2022) does it differently: it splits on spaces, keeps case and punctuation, and
ignores missing words. `parity=True` follows that code; see `minip2p.p2p.published`.

Axis: j tokens. Positions count the start token, the end token and the padding.
"""

import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise, takewhile
from typing import Any

import torch
from torch import Tensor

from minip2p.validation import is_integer

WordSelector = str | int | slice | range | tuple[str, int]  # see `Prompt.token_indices`

SPECIAL_TOKENS = ("<start>", "<end>", "<padding>")  # CLIP's tokens around the text, as words that can be selected

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
        """Reads a prompt with a CLIPTokenizer. Raises ValueError if its tokens cannot be assigned to its words.

        An added token "<cat>" stands for the tokens "<cat>", "<cat>_1", "<cat>_2", … where the tokenizer has them, as
        in diffusers' pipelines: textual inversion may have learned several vectors for one word.
        """
        ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
        all_ids = tokenizer(text, verbose=False).input_ids  # neither padded nor truncated
        words = locate_words(text, all_ids, tokenizer)
        if vectors := tokens_of_several_vectors(tokenizer, all_ids):
            ends = [0, *accumulate(len(vectors.get(i, (i,))) for i in all_ids)]  # ends[j]: where token j now starts
            words = [Word(word.text, (ends[word.span[0]], ends[word.span[1]])) for word in words]
            all_ids = [v for i in all_ids for v in vectors.get(i, (i,))]
            length, eos = len(ids), all_ids[-1]
            ids = [*all_ids, *[tokenizer.pad_token_id] * (length - len(all_ids))]
            ids = ids if len(ids) == length else [*ids[: length - 1], eos]
        tokens = tuple(tokenizer.decode([i]) for i in ids[: len(all_ids)])
        return cls(text, tuple(ids), tokens, tuple(words))

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
        ("cat", 2) is the second occurrence. It selects by number: an int, a range or a slice counts words from 0. And
        "<start>", "<end>" and "<padding>" are the tokens around the text, unless the prompt itself contains this.
        Raises ValueError if there is no such word, if the truncation cut all of its occurrences off, or for another
        type.
        """
        nth = isinstance(word, tuple) and len(word) == 2 and isinstance(word[0], str) and not isinstance(word[1], str)
        if not (nth or is_integer(word) or isinstance(word, str | slice | range)):
            raise ValueError(f"a word is given as text, as (text, n), by index or by a range, not as {word!r}")
        if isinstance(word, str) and word in SPECIAL_TOKENS and word not in normalize_text(self.text):
            return self._special_indices(word)
        matches = self._matches_of_text(word) if isinstance(word, str | tuple) else [self._indices_of_number(word)]
        visible = [match for match in matches if all(n < len(self.visible_words) for n in match)]
        if not visible:
            raise ValueError(f"{word!r} lies beyond the last of the {len(self.ids)} tokens that the text encoder reads")
        return tuple(sorted({j for match in visible for n in match for j in range(*self.words[n].span)}))

    def _special_indices(self, token: str) -> tuple[int, ...]:
        """The positions of one of the SPECIAL_TOKENS."""
        indices = {"<start>": (0,), "<end>": (self.eos,), "<padding>": tuple(range(self.eos + 1, len(self.ids)))}
        if not indices[token]:
            raise ValueError(f"the prompt {self.text!r} fills all of the {len(self.ids)} tokens: there is no padding")
        return indices[token]

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
        phrase = split_words(text)
        words = [normalize_text(word.text) for word in self.words]
        pieces = [split_words(word) for word in words]  # more than one only for an added token such as "<my toy>"
        matches: list[Sequence[int]] = [
            range(n, stop)
            for n in range(len(words))
            for stop in range(n + 1, min(n + len(phrase), len(words)) + 1)
            if [piece for word in pieces[n:stop] for piece in word] == phrase
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


def split_words(text: str) -> list[str]:
    """The words of a text as they are compared; the text itself if it is all punctuation."""
    normalized = normalize_text(text).strip()
    return [normalized[a:b] for a, b in word_spans(normalized)] or [normalized]


def tokens_of_several_vectors(tokenizer: Any, ids: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """The id of each added token t in `ids` of which the tokenizer has t_1, t_2, … -> the ids of all of them."""
    vectors = {}
    names: Mapping[str, int] = getattr(tokenizer, "added_tokens_encoder", {})
    added = {i: name for name, i in names.items()}
    for i in set(ids) & added.keys():
        more = takewhile(names.__contains__, (f"{added[i]}_{n}" for n in count(1)))
        if several := tuple(names[name] for name in more):
            vectors[i] = (i, *several)
    return vectors


def locate_words(text: str, ids: Sequence[int], tokenizer: Any) -> list[Word]:
    """All words of a text with the positions of their tokens in `ids` (not truncated, with start and end token).

    An added token is one word, whatever it contains. No other token spans a space, so each chunk between spaces is
    tokenized separately. The text of a chunk is taken from the bytes of its tokens, so nothing is assumed of how the
    tokenizer folds case or composes accents.
    Raises ValueError if the chunks' tokens differ from those of the text.
    """
    names: Mapping[str, int] = getattr(tokenizer, "added_tokens_encoder", {})
    added = {i: name for name, i in names.items() if i in ids[1:-1]}
    texts = split_chunks(text, added.values())
    chunks = [tokenizer(chunk, add_special_tokens=False, verbose=False).input_ids for chunk in texts]
    if [i for chunk in chunks for i in chunk] != list(ids[1:-1]):
        raise ValueError(f"the tokens of {text!r} cannot be told apart by its spaces")
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    words, start = [], 1
    for chunk in chunks:
        if len(chunk) == 1 and chunk[0] in added:
            words.append(Word(added_word(added[chunk[0]]), (start, start + 1)))
        else:
            tokens = tokenizer.convert_ids_to_tokens(chunk)
            words += chunk_words([bytes(byte_of[c] for c in token.removesuffix("</w>")) for token in tokens], start)
        start += len(chunk)
    return words


def split_chunks(text: str, added: Iterable[str]) -> list[str]:
    """The chunks of a text between spaces, and each occurrence of the added tokens as a chunk of its own."""
    texts = [text]
    if names := sorted(added, key=len, reverse=True):
        pattern = "|".join(r"\s+".join(map(re.escape, name.split())) for name in names)
        texts = re.split(f"({pattern})", unicodedata.normalize("NFC", text), flags=re.IGNORECASE)
    # The separators \x1c-\x1f are spaces in Python, but not in CLIP.
    return [
        chunk for n, piece in enumerate(texts) for chunk in ([piece] if n % 2 else re.findall(r"[\S\x1c-\x1f]+", piece))
    ]


def added_word(name: str) -> str:
    """The word that an added token is: "my toy" for "<my toy>", and all of a token that is only punctuation."""
    name = name.lower()
    spans = word_spans(name)
    return name[spans[0][0] : spans[-1][1]] if spans else name


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
