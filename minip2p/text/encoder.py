"""Text encoders: prompts become the embeddings that the UNet's cross-attention reads.

The CLIP networks and tokenizers come from `transformers`; `minip2p.checkpoints.text_encoders` loads them.

Axes: b batch, n tokens (77 for CLIP), d width of the UNet's context, p width of a pooled embedding.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minip2p.errors import Notice, UnknownWords
from minip2p.text.prompt import Prompt, normalize_text
from minip2p.text.syntax import foreign_syntax


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """What the UNet knows of some prompts.

    tokens: b n d, one vector a token. pooled: b p, one vector a prompt, in Stable Diffusion XL (Podell et al. 2023,
    section 2.1); None in models with one text encoder.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "TextEmbedding":
        return TextEmbedding(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, *args: Any, **options: Any) -> "TextEmbedding":
        """Moves or converts both tensors, as `Tensor.to` does."""
        pooled = None if self.pooled is None else self.pooled.to(*args, **options)
        return TextEmbedding(self.tokens.to(*args, **options), pooled)

    def repeat(self, count: int) -> "TextEmbedding":
        """One prompt's embedding as `count` rows; an embedding of `count` rows as it is."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return TextEmbedding(self.tokens.expand(count, -1, -1), pooled)

    @staticmethod
    def cat(embeddings: Iterable["TextEmbedding"]) -> "TextEmbedding":
        """The rows of several embeddings, one after the other."""
        several = list(embeddings)
        pooled = [embedding.pooled for embedding in several if embedding.pooled is not None]
        tokens = torch.cat([embedding.tokens for embedding in several])
        return TextEmbedding(tokens, torch.cat(pooled) if pooled else None)


@dataclass(frozen=True, eq=False)
class ClipEncoder:
    """One CLIP text encoder with its tokenizer.

    name: its folder in a checkpoint, "text_encoder" or "text_encoder_2". network: the `transformers` module.
    tokenizer_path: the folder of the tokenizer's files. width, pooled_width: of its hidden states and its projection.
    """

    name: str
    network: Any
    tokenizer: Any
    tokenizer_path: Path
    width: int
    pooled_width: int

    @property
    def max_tokens(self) -> int:
        """How many tokens a prompt is cut or padded to."""
        return int(self.tokenizer.model_max_length)

    @property
    def layers(self) -> int:
        return int(self.network.config.num_hidden_layers)

    def __call__(self, prompts: Sequence[str], skip_layers: int = 0, norm: bool = True) -> tuple[Tensor, Tensor | None]:
        """Encodes prompts.

        skip_layers: returns the hidden states so many layers before the last. norm: after the final norm.
        Returns the hidden states, b n width, and the projected end-of-text state, b p, or None where the encoder has
        no projection.
        """
        ids = [Prompt.tokenize(text, self.tokenizer).ids for text in prompts]
        device = next(self.network.parameters()).device
        output = self.network(input_ids=torch.tensor(ids, device=device), output_hidden_states=skip_layers > 0)
        hidden = output.hidden_states[-1 - skip_layers] if skip_layers else output.last_hidden_state
        if skip_layers and norm:
            modules = self.network.named_modules()  # transformers 4 puts "text_model." before the name
            hidden = next(module for name, module in modules if name.endswith("final_layer_norm"))(hidden)
        return hidden, getattr(output, "text_embeds", None)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Prompts -> `TextEmbedding`, by one CLIP encoder (Stable Diffusion 1 and 2) or two (Stable Diffusion XL).

    With two encoders the hidden states before each last layer are concatenated, and the second encoder's projection is
    the pooled embedding (Podell et al. 2023, section 2.1).

    zero_empty_prompt: an empty negative prompt is all zeros, as some models were trained (in diffusers,
    `force_zeros_for_empty_prompt`). known_words: the only words that the model was trained with; empty for a model that
    may know any word.
    """

    clip_encoders: tuple[ClipEncoder, ...]
    zero_empty_prompt: bool = False
    known_words: frozenset[str] = frozenset()

    @property
    def has_two_encoders(self) -> bool:
        return len(self.clip_encoders) > 1

    @property
    def width(self) -> int:
        """d, the width of the tokens' embeddings."""
        return sum(encoder.width for encoder in self.clip_encoders)

    @property
    def pooled_width(self) -> int:
        """p, the width of the pooled embedding."""
        return self.clip_encoders[-1].pooled_width

    @property
    def tokenizer(self) -> Any:
        return self.clip_encoders[0].tokenizer

    @property
    def encoders(self) -> dict[str, Any]:
        """The `transformers` modules by the names of their folders."""
        return {encoder.name: encoder.network for encoder in self.clip_encoders}

    def with_encoders(self, encoders: Mapping[str, Any]) -> "TextEncoder":
        """The same text encoder with some networks exchanged, by the names of their folders.

        The exchanged ones may know other words, so `known_words` is empty.
        """
        exchanged = (replace(e, network=encoders.get(e.name, e.network)) for e in self.clip_encoders)
        return replace(self, clip_encoders=tuple(exchanged), known_words=frozenset())

    def prompt(self, text: str) -> Prompt:
        """Splits a prompt into tokens and words.

        Raises ValueError for anything but valid text. Warns (`Notice`) where the prompt has more tokens than the
        encoder reads, words that the model was not trained with, and syntax that other tools read as commands.
        """
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be text, not {type(text).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"the prompt {text!r} {surrogates_reason(text)}")
        prompt = Prompt.tokenize(text, self.tokenizer)
        if unread := prompt.words[len(prompt.visible_words) :]:
            warnings.warn(
                f"the prompt {text[:40]!r}… is cut off before the word {unread[0].text[:40]!r}: the text encoder reads "
                f"{len(prompt.ids)} tokens",
                Notice,
                stacklevel=2,
            )
        if syntax := foreign_syntax(text):
            warnings.warn(syntax, Notice, stacklevel=2)
        elif unknown := self.unknown_words(prompt):
            warnings.warn(UnknownWords(*unknown), stacklevel=2)
        return prompt

    def unknown_words(self, prompt: Prompt) -> list[str]:
        """The words of a prompt that are not in `known_words`, each once; none where that is empty.

        Words of added tokens are known, as those of embeddings, and words that are cut off are not looked at.
        """
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).keys() if self.known_words else set()
        words = [word for word in prompt.visible_words if not added >= set(prompt.ids[slice(*word.span)])]
        names = [normalize_text(word.text) for word in words] if self.known_words else []
        return list(dict.fromkeys(name for name in names if name not in self.known_words))

    @property
    def max_clip_skip(self) -> int:
        """The largest `clip_skip`, which leaves one layer."""
        return min(encoder.layers for encoder in self.clip_encoders) - self.has_two_encoders

    def __call__(self, prompts: str | Sequence[str], clip_skip: int = 1) -> TextEmbedding:
        """Encodes one prompt or several: tokens b n d, and pooled b p with two encoders. ValueError as `prompt`.

        clip_skip: 1 takes the hidden states that the model was trained with, n those n − 1 layers before. It is counted
        as in A1111's web UI; in diffusers the same is `clip_skip=n − 1`. The pooled embedding does not depend on it.
        """
        texts: list[Any] = list(prompts) if isinstance(prompts, list | tuple) else [prompts]
        for text in texts:
            self.prompt(text)
        if not self.has_two_encoders:
            return TextEmbedding(self.clip_encoders[0](texts, clip_skip - 1)[0])
        (first, _), (second, pooled) = (encoder(texts, clip_skip, norm=False) for encoder in self.clip_encoders)
        return TextEmbedding(torch.cat([first, second], -1), pooled)

    def encode_negative(self, prompt: str, clip_skip: int = 1) -> TextEmbedding:
        """The embedding of one negative prompt, 1 n d; zeros for an empty one where the model was trained so.

        clip_skip: as for the prompt, as in A1111's web UI; diffusers does not apply it to the negative prompt.
        """
        embedding = self([prompt], clip_skip)
        if not self.zero_empty_prompt or prompt:
            return embedding
        pooled = None if embedding.pooled is None else torch.zeros_like(embedding.pooled)
        return TextEmbedding(torch.zeros_like(embedding.tokens), pooled)


def surrogates_reason(text: str) -> str:
    """Why a text has characters that stand for bytes: the end of a sentence about it."""
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return "has bytes in it that are not UTF-8 text"
    return (
        "is UTF-8 text that Python read in a locale of another encoding: set PYTHONUTF8=1 or a locale such as C.UTF-8"
    )
