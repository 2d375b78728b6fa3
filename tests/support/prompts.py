"""Prompts as the tokenizer of the shipped model reads them."""

from transformers import CLIPTokenizer

from minip2p.io.files import shipped_weights
from minip2p.text.prompt import Prompt

TOKENIZER = CLIPTokenizer.from_pretrained(shipped_weights("tiny") / "tokenizer")


def tokenize(text):
    """A text as a `Prompt`."""
    return Prompt.tokenize(text, TOKENIZER)
