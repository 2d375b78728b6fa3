"""What the published code of Prompt-to-Prompt computes, for `parity=True`: its words and its mapper for a word swap.

The code (Hertz et al. 2022) splits prompts on single spaces, keeps case and punctuation, and ignores words that are
missing. Its mapper has a defect, described at `published_swap_mapper`.

Axes: i source tokens, j target tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minip2p.text.prompt import Prompt
from minip2p.validation import is_integer


def published_words(prompt: Prompt) -> list[tuple[str, list[int]]]:
    """The words of a prompt and their token positions, as the published code computes them.

    Words are separated by single spaces. Tokens are assigned in order: each word takes tokens until their text is as
    long as the word.
    Raises ValueError where that code fails: the prompt has too many tokens, or some are left over.
    """
    if prompt.visible_words != prompt.words:
        raise ValueError(f"the published code cannot take prompts of more than {len(prompt.ids)} tokens")
    words: list[tuple[str, list[int]]] = [(text, []) for text in prompt.text.split(" ")]
    n = length = 0
    for position, token in enumerate(prompt.tokens[1:-1], 1):
        if n == len(words):
            raise ValueError(f"the published code cannot find the words of {prompt.text!r} among its tokens")
        words[n][1].append(position)
        length += len(token.strip("#"))
        if length >= len(words[n][0]):
            n, length = n + 1, 0
    return words


def token_positions(prompt: Prompt, word: Any, parity: bool = False) -> Sequence[int]:
    """The positions of a word's tokens, as `Prompt.token_indices` finds them.

    parity: the tokens of all words that are equal to it, or that have this index, in the published splitting; none if
    there is no such word. Raises ValueError.
    """
    if not parity:
        return prompt.token_indices(word)
    if not isinstance(word, str) and not is_integer(word):
        raise ValueError(f"the published code takes a word or its index, not {word!r}")
    return [j for n, (text, positions) in enumerate(published_words(prompt)) if word in (text, n) for j in positions]


def published_swap_mapper(source: Prompt, target: Prompt) -> Tensor:
    """M (i j) float32 of a word swap, to the bit of the published code.

    Words are what spaces separate, punctuation included. The defect: after the last word that differs, the mapper goes
    on along the target's own diagonal. A swap of words with different numbers of tokens therefore misaligns everything
    behind them, and rows of M sum to 0 or 2.
    Raises ValueError if the prompts differ in their number of words, or where that code cannot split them.
    """
    old, new = published_words(source), published_words(target)
    check_word_counts(len(old), len(new))
    swapped = [(rows, cols) for (a, rows), (b, cols) in zip(old, new, strict=True) if a != b]
    if not all(rows and cols for rows, cols in swapped):
        raise ValueError(f"the published code cannot find the words of {source.text!r} or {target.text!r}")
    M = torch.zeros(len(source.ids), len(target.ids))
    i = j = 0
    for rows, cols in swapped:
        unchanged = rows[0] - i
        distribute(M, range(i, i + unchanged), range(j, j + unchanged))
        distribute(M, rows, cols)
        i, j = i + unchanged + len(rows), j + unchanged + len(cols)
    stop = len(target.ids) - max(i - j, 0)
    distribute(M, range(j, stop), range(j, stop))  # the defect: the rows should continue from i
    return M


def distribute(M: Tensor, rows: Sequence[int], cols: Sequence[int]) -> None:
    """Writes into M what source tokens `rows` give to target tokens `cols`: one to one, or 1/n to each of n tokens."""
    if len(rows) == len(cols):
        M[list(rows), list(cols)] = 1
    else:
        M[torch.tensor(rows, dtype=torch.long)[:, None], list(cols)] = 1 / len(cols)


def check_word_counts(source_words: int, target_words: int) -> None:
    """Raises ValueError unless both prompts have as many words."""
    if source_words != target_words:
        raise ValueError(
            f"a swap needs as many words in the target as in the source, which have {target_words} and {source_words}; "
            "where words are added or left out, refine"
        )
