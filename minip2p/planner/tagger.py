"""The tagger that ships: a small network that reads an instruction, names its intent and marks the words to copy.

A word is the mean of the embeddings of its hashed character n-grams (Bojanowski et al. 2017, fastText), so unknown
words have one too, beside features: whether the caption has the word, and the classes of `minip2p.planner.lexicon`.
A bidirectional GRU reads the words. It invents nothing: the rules of `minip2p.planner.rules` copy the marked words.

Axes: b instructions, n words, f features, g n-grams, d width.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minip2p.checkpoints.strict import load_module
from minip2p.io.files import shipped_weights
from minip2p.io.tensors import write_tensors
from minip2p.planner.lexicon import CLASSES, PLACE_PREPOSITIONS, STOPS, stem
from minip2p.text.prompt import normalize_text, word_spans

FOLDER = shipped_weights("planner")
FILE = "tagger.safetensors"
BUCKETS, WIDTH, HIDDEN = 7000, 56, 144
FEATURES = 5 + len(CLASSES)
MAX_WORDS = 60  # of an instruction

INTENTS = (
    *("swap", "attribute", "add", "remove", "restyle", "place", "strength", "move", "resize", "duplicate"),
    *("several", "other"),  # which are refused
)
# none; what is changed; what comes instead; beside what; the direction; the amount
TAGS = ("none", "old", "new", "beside", "direction", "amount")


@dataclass(frozen=True)
class Reading:
    """What an instruction says. intent: of INTENTS. tags: of TAGS, for each word. confidence: a probability."""

    words: tuple[str, ...]
    intent: str
    tags: tuple[str, ...]
    confidence: float = 1.0

    @property
    def low(self) -> list[str]:
        """The words as they are compared."""
        return [normalize_text(word) for word in self.words]

    def marked(self, tag: str) -> tuple[str, ...]:
        """The words with a tag, as they are written."""
        return tuple(word for word, other in zip(self.words, self.tags, strict=True) if other == tag)


def text_words(text: str) -> tuple[str, ...]:
    """The words of a text as they are written, without punctuation and symbols. A decimal number is one word."""
    words: list[str] = []
    end = 0
    for a, b in word_spans(text):
        if words and text[end:a] == "." and words[-1].isdecimal() and text[a].isdecimal():
            words[-1] += f".{text[a:b]}"
        elif any(character.isalnum() for character in text[a:b]):
            words.append(text[a:b])
        end = b
    return tuple(words)


def spell_numbers(text: str) -> str:
    """An instruction with its numbers as `text_words` reads them: "20%" is 20 percent, "1/2" half, "1,5" and ".5" 1.5
    and 0.5, "2×" and "2x" 2 times."""

    def fraction(match: re.Match[str]) -> str:
        n, of = int(match[1]), int(match[2])
        name = {2: "half", 3: "third", 4: "quarter"}.get(of, "") if n == 1 else ""
        return name or (f"{100 * n / of:.0f} percent" if 0 < n < of else match[0])

    text = re.sub(r"(?<![\d.,/])(\d{1,3})/(\d{1,3})(?![\d/]|[.,]\d)", fraction, text.replace("×", "x"))
    text = re.sub(r"(?<![\w.,])[.,](?=\d)", "0.", text)
    text = re.sub(r"(?<=\d),(?=\d{1,2}(?!\d))", ".", text)
    text = re.sub(r"(?<=\d)x\b", " times", text)
    return re.sub(r"(?<=\d)\s*%", " percent", text)


def word_buckets(word: str) -> list[int]:
    """The hashed character n-grams of a word, of 3 to 5 characters with its ends marked, and the word itself."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]
    return [zlib.crc32(gram.encode()) % BUCKETS for gram in (word, *grams)]


def word_features(words: Sequence[str], caption: Sequence[str]) -> Tensor:
    """n f: whether the caption has the word, or its stem, or has it in a place; capital; number; lexicon's classes."""
    low, text = ([normalize_text(word) for word in some_words] for some_words in (words, caption))
    stems = {stem(word) for word in text}
    places = place_words(text)
    rows = [
        [
            word in text,
            stem(word) in stems,
            word in places,
            raw[:1].isupper(),
            word.replace(".", "", 1).isdecimal(),
            *(word in group for group in CLASSES),
        ]
        for raw, word in zip(words, low, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float32)


def place_words(caption: Sequence[str]) -> set[str]:
    """The words of a caption that follow a preposition of place, as far as the next preposition."""
    places: set[str] = set()
    is_place = False
    for word in caption:
        is_place = word in PLACE_PREPOSITIONS or (is_place and word not in STOPS)
        places |= {word} if is_place else set()
    return places


class TaggerNetwork(nn.Module):
    """Intents and tags of instructions."""

    def __init__(self) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean")
        self.reader = nn.GRU(WIDTH + FEATURES, HIDDEN, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.tag = nn.Linear(2 * HIDDEN, len(TAGS))
        self.intent = nn.Linear(4 * HIDDEN, len(INTENTS))
        self.dropout = nn.Dropout(0.2)

    def forward(self, grams: Tensor, offsets: Tensor, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the intents, b INTENTS, and of the tags, b n TAGS.

        grams, offsets: the n-grams of all words of the batch, n words each with padding, as `EmbeddingBag` takes them.
        features: b n f. lengths: b, the number of words.
        """
        b, n, _ = features.shape
        words = torch.cat([self.grams(grams, offsets).view(b, n, WIDTH), features], dim=2)
        packed = nn.utils.rnn.pack_padded_sequence(self.dropout(words), lengths, True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.reader(packed)[0], batch_first=True, total_length=n)
        inside = torch.arange(n)[None] < lengths[:, None]
        mean = (states * inside[..., None]).sum(1) / lengths[:, None]
        most = states.masked_fill(~inside[..., None], -torch.inf).amax(1)
        states = self.dropout(states)
        return self.intent(self.dropout(torch.cat([mean, most], 1))), self.tag(states)


@dataclass(frozen=True)
class Batch:
    """Instructions as tensors, see `TaggerNetwork.forward`."""

    grams: Tensor
    offsets: Tensor
    features: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> "Batch":
        """From the words of each instruction and of its caption."""
        longest = max(len(words) for words, _ in pairs)
        grams: list[int] = []
        offsets: list[int] = []
        features = torch.zeros(len(pairs), longest, FEATURES)
        for row, (words, caption) in enumerate(pairs):
            features[row, : len(words)] = word_features(words, caption)
            for n in range(longest):
                offsets.append(len(grams))
                grams += word_buckets(normalize_text(words[n])) if n < len(words) else []
        lengths = torch.tensor([len(words) for words, _ in pairs])
        return cls(torch.tensor(grams), torch.tensor(offsets), features, lengths)


class Tagger:
    """The network with its files. `tagger(instruction, caption)` returns a `Reading`."""

    def __init__(self, network: TaggerNetwork):
        self.network = network.eval()

    @torch.no_grad()
    def __call__(self, instruction: str, caption: str) -> Reading:
        """The likeliest intent and tags. Their confidence is p(intent) times the least p(tag) of a word.

        Raises ValueError for an instruction of more than MAX_WORDS words.
        """
        words = text_words(spell_numbers(instruction))
        if len(words) > MAX_WORDS:
            raise ValueError(f"the instruction has {len(words)} words, and {MAX_WORDS} is the most: say one change")
        batch = Batch.of([(words, text_words(caption))])
        intents, tags = self.network(batch.grams, batch.offsets, batch.features, batch.lengths)
        p_intent, intent = intents[0].softmax(0).max(0)
        p_tags, tag = tags[0].softmax(1).max(1)
        confidence = float(p_intent * p_tags.min())
        return Reading(words, INTENTS[int(intent)], tuple(TAGS[i] for i in tag.tolist()), confidence)

    def save(self, folder: str | Path) -> None:
        """Writes the weights, float16, into a folder."""
        write_tensors({name: t.half() for name, t in self.network.state_dict().items()}, Path(folder) / FILE)

    @classmethod
    def load(cls, folder: str | Path | None = None) -> "Tagger":
        """The tagger of a folder; by default the one that ships. Raises FileNotFoundError or ValueError."""
        file = Path(folder or FOLDER) / FILE
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file: train the tagger with python -m minip2p.planner.train")
        return cls(load_module(TaggerNetwork, file, dtype=torch.float32))
