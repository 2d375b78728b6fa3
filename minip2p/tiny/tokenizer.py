"""Makes the tiny model's tokenizer: a reduced CLIP vocabulary for the words of the tiny world.

CLIP's byte-pair encoding (BPE) has 49,408 tokens, whose embedding would be a quarter of the tiny model. The reduced
vocabulary has every byte, so that any text can be tokenized; the first merges of CLIP's table, which are the most
frequent; and the merges that the words of the tiny world need. Those words have the same tokens as in the full table.

    python -m minip2p.tiny.tokenizer bpe_simple_vocab_16e6.txt.gz weights/tiny/tokenizer

The table, bpe_simple_vocab_16e6.txt.gz, is OpenAI CLIP's (MIT licence) and is part of the `open_clip_torch` wheel.
"""

import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from minip2p.text.prompt import byte_alphabet

Merge = tuple[str, str]

MAX_TOKENS = 77
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
CLIP_MERGES = 49408 - 2 * 256 - 2  # CLIP uses only these of the file's 262,144
FIRST_MERGES = 2000
WORLD_WORDS = """
a an the and or of in on at with by to from for near under over behind between beside above below next front back left
right top middle bottom inside outside into through is are has wearing holding sitting standing running sleeping
eating playing looking flying walking one two three some many no not very

photo picture image photograph drawing painting sketch pencil watercolor watercolour oil cartoon illustration render
art style black white colour color colored colorful close view portrait scene background drawn painted sketched

cat dog rabbit horse cow pig sheep elephant tiger camel duck turtle penguin giraffe zebra lion animal animals bird
fish fox bear monkey mouse frog goat chicken panda wolf deer kitten puppy squirrel bunny pony car balloon apple
umbrella chair tulip house bicycle cake backpack hat guitar truck lamp thing things bike bus boat train plane ball
book cup bag flower tree table sofa bed box clock basket burger pizza bread orange banana lemon

red orange yellow green blue purple pink cyan brown gray grey golden silver dark light bright pale colourful grass
beach snow desert night street meadow sea field forest city mountain mountains park river lake garden road sky sand
water ocean space room kitchen farm island village winter summer autumn spring sunny sunset sunrise day morning
evening

fog foggy misty mist flowers flowery snowy snowing snowflakes rain rainy clouds cloudy stars starry moon sun smoke
fire shadow blossoms daisies petals thick thin heavy dense full covered falling empty small big large little tiny huge
tall fat happy sad old new young cute fluffy striped spotted wooden metal glass stone beautiful pretty funny sleepy
wild furry round square lego origami statue toy wood plastic paper marble man woman boy girl person people child king
queen robot knight astronaut crown glasses scarf sunglasses
""".split()


def read_merges(path: Path) -> list[Merge]:
    """CLIP's 48,894 merges, most frequent first, from its gzipped table."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : CLIP_MERGES + 1]  # the first line is the version
    return [(left, right) for left, right in (line.split() for line in lines)]


def word_merges(word: str, rank: dict[Merge, int]) -> set[Merge]:
    """The merges that BPE applies to a word in lower case. It merges the best ranked pair while there is one."""
    symbols = [*word[:-1], word[-1] + WORD_END]
    used = set()
    while pairs := [pair for pair in pairwise(symbols) if pair in rank]:
        best = min(pairs, key=rank.__getitem__)
        i = next(i for i in range(len(symbols)) if tuple(symbols[i : i + 2]) == best)
        symbols[i : i + 2] = ["".join(best)]
        used.add(best)
    return used


def cut_merges(merges: Sequence[Merge], words: Iterable[str], first: int) -> list[Merge]:
    """The `first` merges and those that `words` need, in the table's order.

    The words keep their tokens: BPE always merges the best ranked pair in a word. That pair is among the selected
    merges, and so it is the best ranked pair there as well.
    """
    rank = {merge: i for i, merge in enumerate(merges)}
    needed = set(merges[:first]).union(*(word_merges(word, rank) for word in words))
    return sorted(needed, key=rank.__getitem__)


def vocabulary(merges: Sequence[Merge]) -> dict[str, int]:
    """Token -> id, in CLIP's order: bytes, bytes at the end of a word, merges, start of text, end of text."""
    alphabet = byte_alphabet().values()
    tokens = [*alphabet, *(c + WORD_END for c in alphabet), *(left + right for left, right in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


def write_tokenizer(merges: Sequence[Merge], folder: Path) -> None:
    """Writes the four files of a Stable Diffusion tokenizer folder, which transformers' CLIPTokenizer opens."""
    special = {
        name: {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", START), ("eos_token", END), ("unk_token", END))
    }
    special_or_typed = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": MAX_TOKENS,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        **special_or_typed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False) + "\n", encoding="utf-8")
    for name, content in (("tokenizer_config", config), ("special_tokens_map", {**special, "pad_token": END})):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def cut_tokenizer(merges: Sequence[Merge], words: Iterable[str], folder: Path, first: int = FIRST_MERGES) -> None:
    """Writes a tokenizer folder with the `first` merges of a table and those that `words` need."""
    write_tokenizer(cut_merges(merges, words, first), folder)


if __name__ == "__main__":
    cut_tokenizer(read_merges(Path(sys.argv[1])), WORLD_WORDS, Path(sys.argv[2]))
