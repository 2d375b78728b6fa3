"""Tokenizers and text encoders, both by `transformers`: prompts into what the UNet reads.

Axes: b batch, n tokens, d width of the context that the UNet reads.
"""

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.checkpoints.text_encoders import load_text_encoder, load_tokenizer
from minip2p.config import config_size
from minip2p.errors import Notice
from minip2p.text.prompt import Prompt


class CheckpointFiles(Protocol):
    """Where the parts of a model are: see `folder.Folder`."""

    location: Path
    root: Path  # where the model's own minip2p.json would be

    def has(self, part: str) -> bool: ...
    def config_file(self, part: str) -> Path: ...
    def config(self, part: str) -> dict[str, Any]: ...
    def tokenizer(self, part: str) -> Path: ...
    def tensors(self, part: str) -> tuple[dict[str, Tensor], Path]: ...


class ClipEncoder:
    """A text encoder and its tokenizer: "text_encoder" and "tokenizer", or those whose names end in "_2"."""

    def __init__(self, files: CheckpointFiles, number: str, dtype: torch.dtype, device: torch.device | str):
        self.part, self.device, self.tokenizer_path = (
            f"text_encoder{number}",
            device,
            files.tokenizer(f"tokenizer{number}"),
        )
        config, where = files.config(self.part), files.config_file(self.part)
        self.width, self.pooled_width = (
            config_size(config, name, 512, where) for name in ("hidden_size", "projection_dim")
        )
        self.tokenizer = load_tokenizer(self.tokenizer_path)
        tensors, self.file = files.tensors(self.part)
        encoder = load_text_encoder(config, where, tensors, self.file, dtype)
        self.max_tokens, most = self.tokenizer.model_max_length, encoder.config.max_position_embeddings
        if self.max_tokens > most:
            raise ValueError(
                f"{self.tokenizer_path / 'tokenizer_config.json'}: model_max_length is {self.max_tokens}, and the text "
                f"encoder takes {most} tokens"
            )
        if len(self.tokenizer) > encoder.config.vocab_size:
            raise ValueError(
                f"{self.tokenizer_path}: has {len(self.tokenizer)} tokens, and the text encoder {encoder.config.vocab_size}"
            )
        self.encoder = encoder.to(device)

    def __call__(self, prompts: Sequence[str], skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """The last hidden states, b n d, and the projection of the end token's where the encoder has one, b p. skip:
        the states before so many last layers, and before the norm, instead."""
        ids = torch.tensor([Prompt.tokenize(text, self.tokenizer).ids for text in prompts], device=self.device)
        said = self.encoder(input_ids=ids, output_hidden_states=skip > 0)
        hidden = said.hidden_states[-1 - skip] if skip else said.last_hidden_state
        return hidden, getattr(said, "text_embeds", None)


class TextEncoder:
    """Prompts -> the context that the UNet's cross-attention reads.

    Of Stable Diffusion 1 and 2 these are the last hidden states of one encoder. Stable Diffusion XL (Podell et al.
    2023, section 2.1) has two, whose states before the last layer stand side by side; and of a prompt as a whole it
    reads the second's projection, which here is one more row after the tokens', filled up with zeros (`parted`).
    """

    def __init__(self, files: CheckpointFiles, *, dtype: torch.dtype, device: torch.device | str = "cpu"):
        self.location, numbers = files.location, ("", "_2") if files.has("text_encoder_2") else ("",)
        self.clip_encoders = [ClipEncoder(files, number, dtype, device) for number in numbers]
        if len({tower.max_tokens for tower in self.clip_encoders}) > 1:
            raise ValueError(
                f"{files.location}: its tokenizers are of {' and '.join(str(t.max_tokens) for t in self.clip_encoders)} "
                "tokens, and what they say stands side by side"
            )
        self.width, self.pooled_width = (
            sum(tower.width for tower in self.clip_encoders),
            self.clip_encoders[-1].pooled_width,
        )
        # As in diffusers, unless model_index.json says otherwise.
        self.zero_empty_prompt = (
            self.has_two_encoders and files.config("").get("force_zeros_for_empty_prompt", True) is not False
        )

    @property
    def has_two_encoders(self) -> bool:
        return len(self.clip_encoders) > 1

    @property
    def tokenizer(self) -> Any:
        return self.clip_encoders[0].tokenizer

    def with_encoders(self, encoders: Mapping[str, Any]) -> "TextEncoder":
        """The same, but with these encoders, by the names of their folders, in the place of its own."""
        twin = copy(self)
        twin.clip_encoders = [copy(tower) for tower in self.clip_encoders]
        for tower in twin.clip_encoders:
            tower.encoder = encoders.get(tower.part, tower.encoder)
        return twin

    @property
    def encoders(self) -> dict[str, Any]:
        """The encoders by the names of their folders."""
        return {tower.part: tower.encoder for tower in self.clip_encoders}

    def prompt(self, text: str) -> Prompt:
        """A prompt with its tokens and words."""
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be text, not {type(text).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"the prompt {text!r} has bytes in it that are not UTF-8 text")
        prompt = Prompt.tokenize(text, self.tokenizer)
        if unread := prompt.words[len(prompt.visible_words) :]:
            warnings.warn(
                f"the prompt {text[:40]!r}… is read to the word before {unread[0].text!r}: the text encoder "
                f"takes {len(prompt.ids)} tokens",
                Notice,
                stacklevel=2,
            )
        return prompt

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """Prompts -> b n d (n: the tokenizer's length, 77), or b n+1 d of two encoders."""
        several: list[Any] = list(prompts) if isinstance(prompts, list | tuple) else [prompts]
        for text in several:
            self.prompt(text)
        if not self.has_two_encoders:
            return self.clip_encoders[0](several)[0]
        (first, _), (second, pooled) = (tower(several, skip=1) for tower in self.clip_encoders)
        assert pooled is not None
        return torch.cat(
            [torch.cat([first, second], -1), F.pad(pooled, (0, self.width - self.pooled_width))[:, None]], 1
        )

    def encode_negative(self, prompt: str) -> Tensor:
        """The context of a negative prompt, 1 n d: nothing at all for an empty one, where the model was so trained."""
        context = self([prompt])
        return torch.zeros_like(context) if self.zero_empty_prompt and not prompt else context

    def split_pooled(self, context: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `__call__` makes -> the tokens' rows, b n d, and of two encoders the prompts' own, b p."""
        return (context[:, :-1], context[:, -1, : self.pooled_width]) if self.has_two_encoders else (context, None)
