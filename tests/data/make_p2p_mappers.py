"""Runs the published google/prompt-to-prompt code on 1,000 random prompt pairs and keeps what it returns.

    python tests/data/make_p2p_mappers.py FOLDER     FOLDER: that repository's seq_aligner.py and ptp_utils.py

p2p_prompts.json: [source, target] of 500 swaps, then of 500 refinements, and the seed.
p2p_mappers.npz, over these pairs in order:
  swap_at      entries × 3   pair, source token, target token of each entry of the replacement mapper that is not 0
  swap_value   entries       its value
  refine_from  500 × 77      source token of each target token, −1 where there is none
  refine_alpha 500 × 77      1 where the target token keeps the source's map
  alpha        100 × 50 × 77 the schedule for {"default_": .8, WORD: (.2, .6)}, WORD being the target's first word,
                             of the first 100 swaps (the row beyond the last step is left out)
"""

import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from transformers import CLIPTokenizer

SEED = 20260101
HERE = Path(__file__).parent
TOKENIZER = HERE.parents[1] / "weights" / "tiny" / "tokenizer"
PLAIN = """a the of and on in with cat dog horse zebra car house red blue green grass beach snow night street photo
sketch watercolor two old small sitting running A Cat RED""".split()
LONG = """giraffe kangaroo hippopotamus zookeeper saxophone black-and-white cat's don't rhinoceros 1984 lighthouse
watermelons Dalmatian brontosaurus e-bike xylophone""".split()
MARKED = "cat, dog. (horse) car! \"house\" grass; snow: beach? street... 'night' #cat #7".split()


def random_words(rng, count):
    return [rng.choice(rng.choices((PLAIN, LONG, MARKED), (6, 2, 1))[0]) for _ in range(count)]


def random_length(rng, size):
    return rng.randint(1, 14) if rng.random() < 0.85 else rng.randint(int(0.25 * size), int(0.7 * size))


def swap_pair(rng, size):
    source = random_words(rng, random_length(rng, size))
    target = list(source)
    for n in rng.sample(range(len(source)), rng.randint(1, min(3, len(source)))):
        target[n] = random_words(rng, 1)[0]
    return " ".join(source), " ".join(target)


def refine_pair(rng, size):
    source = random_words(rng, random_length(rng, size))
    target = list(source)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(target))
        target[at : at + rng.randint(0, 3)] = random_words(rng, rng.randint(0, 2))
    return " ".join(source), " ".join(target)


def random_pairs(rng, make, run, tokenizer, count):
    """`count` pairs that fit into the tokens and on which the published code does not fail, and what it returns."""
    size = tokenizer.model_max_length
    pairs, results = [], []
    while len(pairs) < count:
        pair = make(rng, size)
        if max(len(tokenizer(text, verbose=False).input_ids) for text in pair) <= size:
            try:
                results.append(run(list(pair), tokenizer))
            except (IndexError, ZeroDivisionError):  # it loses count of tokens and words, and runs out of either
                continue
            pairs.append(pair)
    return pairs, results


def published(folder):
    """Its two modules. What they import for notebooks, and do not use here, is replaced by empty modules."""
    sys.path.insert(0, str(folder))
    for name, fields in (("cv2", {}), ("IPython", {}), ("IPython.display", {"display": None})):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(fields)
    import ptp_utils
    import seq_aligner

    return SimpleNamespace(aligner=seq_aligner, utils=ptp_utils)


def main(folder):
    p2p, rng, tokenizer = published(folder), random.Random(SEED), CLIPTokenizer.from_pretrained(TOKENIZER)
    swaps, M = random_pairs(rng, swap_pair, p2p.aligner.get_replacement_mapper, tokenizer, 500)
    refines, pairs = random_pairs(rng, refine_pair, p2p.aligner.get_refinement_mapper, tokenizer, 500)
    M = np.concatenate([m.numpy() for m in M])
    refine_from, refine_alpha = (np.concatenate([pair[n].numpy() for pair in pairs]) for n in (0, 1))
    at = np.argwhere(M)
    alpha = [
        p2p.utils.get_time_words_attention_alpha(
            pair, 50, {"default_": 0.8, pair[1].split(" ")[0]: (0.2, 0.6)}, tokenizer
        )[:50, 0, 0, 0]
        for pair in swaps[:100]
    ]
    np.savez_compressed(
        HERE / "p2p_mappers.npz",
        swap_at=at.astype(np.int16),
        swap_value=M[tuple(at.T)],
        refine_from=refine_from.astype(np.int8),
        refine_alpha=refine_alpha.astype(np.uint8),
        alpha=np.stack(alpha).astype(np.uint8),
    )
    listed = {"seed": SEED, "swap": swaps, "refine": refines}
    (HERE / "p2p_prompts.json").write_text(json.dumps(listed, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
