"""Aligns two prompts: which source word feeds which target word.

A mapper is a matrix (source tokens × target tokens). It turns a map A (queries × source tokens) into A M (queries ×
target tokens). Prompt-to-Prompt (Hertz et al. 2022) has two: one for word swaps and one for refinements.

Axes: i source tokens, j target tokens. Both count the start token, the end token and the padding.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import eq
from typing import Any

import torch
from torch import Tensor

from minip2p.p2p.published import check_word_counts, distribute
from minip2p.text.prompt import Prompt, normalize_text


def swap_mapper(source: Prompt, target: Prompt) -> Tensor:
    """M (i j) float32 of a word swap: the n-th target word takes the attention of the n-th source word.

    Words with equally many tokens are mapped token by token. Otherwise each of the m target tokens takes 1/m of every
    source token: 1 → m divides the attention, k → 1 adds it up. Punctuation between two words is mapped to the
    punctuation at the same place in the target. Tokens that the target leaves out (punctuation) or cuts off (words
    beyond its last token) are mapped to the word before. The end token is mapped to the end token and the n-th padding
    token to the n-th.
    So the rows of M sum to 1: attention is redistributed, and none is created or lost. The exception is source padding
    that a longer target pushes beyond its end, whose rows are 0.
    `published_swap_mapper` is the published code's version. Raises ValueError if the numbers of words differ.
    """
    check_word_counts(len(source.words), len(target.words))
    M = torch.zeros(len(source.ids), len(target.ids))
    *blocks, (rows, cols) = zip(segments(source), segments(target), strict=True)
    tail = min(len(rows), len(cols))
    distribute(M, rows[:tail], cols[:tail])
    before = range(0)
    for rows, cols in blocks:
        before = cols or before
        distribute(M, rows, before)
    return M


def refine_alignment(source: Prompt, target: Prompt, *, parity: bool = False) -> tuple[Tensor, Tensor]:
    """P (i j) and κ (j), float32, of a refinement: which source token is which target token, and which are shared.

    Tokens are aligned by Needleman and Wunsch (gap 0, match 1, mismatch −1). κ is 1 where the target token is in the
    source too, and there column j of P is one-hot. Elsewhere both are 0 and the token keeps the target's own map. A
    source token other than padding is used at most once. Target padding takes the source's padding at the same
    position; where a longer source still has text there, it takes the source's first padding token; and where the
    source has no padding at all, κ is 0.

    parity: as in the published code, target padding takes whatever stands at its position in the source. Where the
    target is shorter, that is the end token and the last words, which are then used twice (rows of P sum to 2).
    """
    text = align_sequences(source.ids[: source.eos + 1], target.ids[: target.eos + 1])
    first = 0 if parity else source.eos + 1
    padding = [(max(j, first), j) for j in range(target.eos + 1, len(target.ids)) if first < len(source.ids)]
    P = torch.zeros(len(source.ids), len(target.ids))
    for i, j in text + padding:
        P[i, j] = 1
    return P, P.sum(0)


def infer_kind(source: Prompt, target: Prompt) -> str:
    """Which edit two prompts ask for: "swap" or "refine".

    A swap gives each word the attention of the word at the same place. It is meant where some words were exchanged and
    all others stayed at their places: there are as many words, some differ, and no alignment keeps more of them than
    staying in place does. "a cat on grass" → "a dog on grass" is a swap. Where words moved ("a photo of a cat" → "a cat
    on the beach"), were added or removed, or only punctuation changed, places mean nothing, and the words that both
    prompts share are aligned instead.
    """
    old, new = ([normalize_text(word.text) for word in prompt.words] for prompt in (source, target))
    in_place = sum(map(eq, old, new))
    return "swap" if len(old) == len(new) and in_place == len(align_sequences(old, new)) < len(old) else "refine"


def alignment_table(source: Prompt, target: Prompt, mapper: Tensor, kappa: Tensor | None = None) -> str:
    """A text table: which source word feeds which target word, and with what share of its attention.

    mapper (i j): M of a swap, or P of a refinement with its κ (j). Target words that keep their own map, in full or for
    a share of their tokens, are fed by "(own map)". Source words that feed no target word feed "(unused)".
    """
    kappa = torch.ones(len(target.ids)) if kappa is None else kappa
    shares = mapper * kappa
    rows = [("source", "share", "target")]
    for new in target.visible_words:
        cols = slice(*new.span)
        fed = [(old.text, float(shares[slice(*old.span), cols].sum(1).mean())) for old in source.visible_words]
        fed.append(("(own map)", 1 - float(kappa[cols].mean())))
        rows += [(text, f"{share:.2f}", new.text) for text, share in fed if share > 0]
    unused = [old.text for old in source.visible_words if not shares[slice(*old.span)].any()]
    rows += [(text, "0.00", "(unused)") for text in unused]
    width = max(len(text) for text, _, _ in rows)
    return "\n".join(f"{text:<{width}}  {share:>5}  {new}" for text, share, new in rows)


def segments(prompt: Prompt) -> list[range]:
    """Token positions in order: start, punctuation, word, punctuation, word, …, punctuation, end and padding.

    Segments end where the tokens are cut off.
    """
    edges = [1, *(min(position, prompt.eos) for word in prompt.words for position in word.span), prompt.eos]
    return [range(a, b) for a, b in pairwise([0, *edges, len(prompt.ids)])]


def align_sequences(x: Sequence[Any], y: Sequence[Any]) -> list[tuple[int, int]]:
    """The pairs (i, j) with x[i] = y[j] of the best global alignment (Needleman and Wunsch 1970).

    Gap 0, match 1, mismatch −1. Ties are broken as in the published code: skip an element of y, else one of x, else
    match. A match is therefore as early in y as possible. As a mismatch is never better than two gaps, only equal
    elements are paired.
    """
    best = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            best[i][j] = max(best[i][j - 1], best[i - 1][j], best[i - 1][j - 1] + (1 if a == b else -1))
    i, j, pairs = len(x), len(y), []
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]
