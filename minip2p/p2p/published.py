"""TODO: describe."""

from collections.abc import Sequence
from typing import Any

from minip2p.text.prompt import Prompt
from minip2p.validation import is_integer


def published_words(prompt: Prompt) -> list[tuple[str, list[int]]]:
    """Words and their token positions as the published code finds them.

    Words are what single spaces part. The tokens are dealt out in order, each word taking them until what they say is
    as long as the word. Raises ValueError where that code fails too: too many tokens, or some left over.
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


def token_positions(prompt: Prompt, word: Any, parity: bool) -> Sequence[int]:
    """Positions of a word's tokens; parity: of all the words that equal it in the published splitting, or none; or of
    the word of that index."""
    if parity:
        if not isinstance(word, str) and not is_integer(word):
            raise ValueError(f"the published code takes a word or its index, not {word!r}")
        return [
            j for n, (text, positions) in enumerate(published_words(prompt)) if word in (text, n) for j in positions
        ]
    return prompt.token_indices(word)
