"""Alignment of two prompts: which source word feeds which target word.

A mapper is a matrix (source tokens × target tokens): a map A (queries × source tokens) becomes A M (queries × target
tokens). Here are the two of Prompt-to-Prompt (Hertz et al. 2022): word swap and refinement. `parity=True` gives what
the published code gives, to the bit, its way of splitting words included; each docstring says how that differs.

Axes: i source tokens, j target tokens. Both count the start token, the end token and the padding.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import eq
from typing import Any

import torch
from torch import Tensor

from minip2p.p2p.published import published_words
from minip2p.text.prompt import Prompt, normalize_text


def swap_mapper(source: Prompt, target: Prompt, *, parity: bool = False) -> Tensor:
    """M (i j) float32 of a word swap: the n-th target word takes the attention of the n-th source word.

    A word of as many tokens takes it token by token. Otherwise each of the m target tokens takes 1/m of every source
    token: 1 → m is shared out, k → 1 is summed. Marks between words go to the marks that stand there in the target;
    what the target leaves out (marks) or cuts off (words beyond its last token) goes to the word before it. After the
    last word, end goes to end and the n-th padding to the n-th. So the rows of M sum to 1: attention is shared out,
    none is made or lost; except source padding that a longer target pushes past the end (0).

    parity: words are what spaces part, marks included; and after the last word that differs the mapper goes on along
    the target's own diagonal, so a swap of unequal lengths leaves the tail misaligned (rows sum to 0 or 2).
    Raises ValueError if the prompts differ in their number of words.
    """
    if parity:
        return published_swap_mapper(source, target)
    check_word_counts(len(source.words), len(target.words))
    M = torch.zeros(len(source.ids), len(target.ids))
    *blocks, (rows, cols) = zip(segments(source), segments(target), strict=True)
    tail = min(len(rows), len(cols))
    share_attention(M, rows[:tail], cols[:tail])
    before = range(0)
    for rows, cols in blocks:
        before = cols or before
        share_attention(M, rows, before)
    return M


def refine_alignment(source: Prompt, target: Prompt, *, parity: bool = False) -> tuple[Tensor, Tensor]:
    """P (i j) and κ (j), float32, of a refinement: which source token is which target token, and which were kept.

    Needleman–Wunsch on the tokens (gap 0, match 1, mismatch −1). κ is 1 where the target token is in the source too,
    and there column j of P is one-hot; elsewhere both are 0 and the token keeps the target's own map. A source token
    that is no padding is used at most once. Target padding takes the padding at its own position, or, where a longer
    source still has text there, its first padding; where the source has no padding at all, κ is 0.

    parity: target padding takes whatever stands at its position in the source: where the target is shorter, the end
    token and the last words, which are then used twice (rows sum to 2).
    """
    text = align_sequences(source.ids[: source.eos + 1], target.ids[: target.eos + 1])
    first = 0 if parity else source.eos + 1
    padding = [(max(j, first), j) for j in range(target.eos + 1, len(target.ids)) if first < len(source.ids)]
    P = torch.zeros(len(source.ids), len(target.ids))
    for i, j in text + padding:
        P[i, j] = 1
    return P, P.sum(0)


def infer_kind(source: Prompt, target: Prompt) -> str:
    """Which edit the two prompts ask for: "swap" or "refine".

    A swap gives each word the attention of the word at the same place. That is meant where words were exchanged and the
    rest stayed where it was: as many words, some differ, and no shifting of the words would keep more of them than stay
    at their places. "a cat on grass" → "a dog on grass" is one. If words moved ("a photo of a cat" → "a cat on the
    beach"), were added or left out, or only marks did, the places mean nothing, and what both prompts share is aligned.
    """
    old, new = ([normalize_text(word.text) for word in prompt.words] for prompt in (source, target))
    in_place = sum(map(eq, old, new))
    return "swap" if len(old) == len(new) and in_place == len(align_sequences(old, new)) < len(old) else "refine"


def alignment_table(source: Prompt, target: Prompt, mapper: Tensor, kept: Tensor | None = None) -> str:
    """A table of which source word feeds which target word, with what share of its attention.

    mapper (i j): M of a swap, or P of a refinement with its kept words κ (j). Target words that keep their own map (in
    full, or with that share of their tokens) come from "(own map)"; source words that nobody takes go to "(unused)".
    """
    kept = torch.ones(len(target.ids)) if kept is None else kept
    given = mapper * kept
    rows = [("source", "share", "target")]
    for new in target.visible_words:
        cols = slice(*new.span)
        fed = [(old.text, float(given[slice(*old.span), cols].sum(1).mean())) for old in source.visible_words]
        fed.append(("(own map)", 1 - float(kept[cols].mean())))
        rows += [(text, f"{share:.2f}", new.text) for text, share in fed if share > 0]
    rows += [(old.text, "0.00", "(unused)") for old in source.visible_words if not given[slice(*old.span)].any()]
    width = max(len(text) for text, _, _ in rows)
    return "\n".join(f"{text:<{width}}  {share:>5}  {new}" for text, share, new in rows)


def check_word_counts(old: int, new: int) -> None:
    if old != new:
        raise ValueError(
            f"a swap needs as many words in the target as in the source, which have {new} and {old}; "
            "where words are added or left out, refine"
        )


def segments(prompt: Prompt) -> list[range]:
    """Positions in order: start, marks, word, marks, word, ..., marks, end and padding; cut where the tokens are."""
    edges = [1, *(min(position, prompt.eos) for word in prompt.words for position in word.span), prompt.eos]
    return [range(a, b) for a, b in pairwise([0, *edges, len(prompt.ids)])]


def share_attention(M: Tensor, rows: Sequence[int], cols: Sequence[int]) -> None:
    """Fills in what the tokens `rows` give to `cols`: one to one, or to each of them the same."""
    if len(rows) == len(cols):
        M[list(rows), list(cols)] = 1
    else:
        M[torch.tensor(rows, dtype=torch.long)[:, None], list(cols)] = 1 / len(cols)


def align_sequences(x: Sequence[Any], y: Sequence[Any]) -> list[tuple[int, int]]:
    """(i, j) with x[i] = y[j] of the best global alignment (Needleman and Wunsch 1970; gap 0, match 1, mismatch −1).

    Ties as in the published code: leave out y's element, else x's, else match. A match is thus as early in y as can be,
    and as a mismatch never beats two gaps, only equal elements are paired.
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


def published_swap_mapper(source: Prompt, target: Prompt) -> Tensor:
    old, new = published_words(source), published_words(target)
    check_word_counts(len(old), len(new))
    swapped = [(rows, cols) for (a, rows), (b, cols) in zip(old, new, strict=True) if a != b]
    if not all(rows and cols for rows, cols in swapped):
        raise ValueError(f"the published code cannot find the words of {source.text!r} or {target.text!r}")
    M = torch.zeros(len(source.ids), len(target.ids))
    i = j = 0
    for rows, cols in swapped:
        same = rows[0] - i
        share_attention(M, range(i, i + same), range(j, j + same))
        share_attention(M, rows, cols)
        i, j = i + same + len(rows), j + same + len(cols)
    stop = len(target.ids) - max(i - j, 0)
    share_attention(M, range(j, stop), range(j, stop))  # the defect: rows should go on from i
    return M
