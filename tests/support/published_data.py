"""What the published Prompt-to-Prompt code returned for 1,000 random prompt pairs (tests/data/make_p2p_mappers.py)."""

import json
from functools import cache

import numpy as np
import torch
from paths import DATA
from prompts import tokenize


@cache
def prompt_pairs(kind):
    """500 pairs (source, target) of a kind, "swap" or "refine", as text."""
    return [tuple(pair) for pair in json.loads((DATA / "p2p_prompts.json").read_text(encoding="utf-8"))[kind]]


@cache
def tokenized_pairs(kind):
    """The same pairs as prompts."""
    return [(tokenize(source), tokenize(target)) for source, target in prompt_pairs(kind)]


@cache
def arrays():
    with np.load(DATA / "p2p_mappers.npz") as data:
        return {name: torch.from_numpy(data[name]) for name in data}


@cache
def swap_mappers():
    """The mapper of each swap pair, 500 × source tokens × target tokens."""
    mappers = torch.zeros(500, 77, 77)
    mappers[tuple(arrays()["swap_at"].long().T)] = arrays()["swap_value"]
    return mappers


def refine_mappers():
    """The source token of each target token, −1 where there is none; and κ: each 500 × target tokens."""
    return arrays()["refine_from"].long(), arrays()["refine_alpha"].float()


def schedules():
    """α of the first 100 swap pairs, 100 × steps × target tokens, for {"default_": 0.8, FIRST WORD: (0.2, 0.6)}."""
    return arrays()["alpha"].float()
