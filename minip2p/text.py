"""Tokenizer and text encoder, both by `transformers`, which is imported only when a prompt is first read."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minip2p.checkpoint import check_names, read_tensors
from minip2p.config import is_whole, read_json
from minip2p.words import Prompt


def _line(error: Exception) -> str:
    """What an error of transformers says, which may be a paragraph, as one line."""
    return " ".join(str(error).split())


class Text:
    """Prompts -> the context that the UNet's cross-attention reads. `folder` holds tokenizer/ and text_encoder/."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"):
        self.folder, self.dtype, self.device = folder, dtype, device
        tokenizer = ("vocab.json", "merges.txt", "tokenizer_config.json")
        for needed in (*(f"tokenizer/{name}" for name in tokenizer), "text_encoder/model.safetensors"):
            if not (folder / needed).is_file():
                raise FileNotFoundError(f"{folder / needed}: no such file; is {folder} a diffusers model folder?")
        self.width: int = read_json(folder / "text_encoder" / "config.json").get("hidden_size", 512)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        path = self.folder / "tokenizer"
        try:
            tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as error:  # a broken vocabulary raises just this class
            raise ValueError(f"{path}: cannot be read as a tokenizer ({_line(error)})") from None
        size: Any = read_json(path / "tokenizer_config.json").get("model_max_length")
        if not is_whole(size) or not 2 < size < 2**16:
            raise ValueError(f"{path / 'tokenizer_config.json'}: model_max_length is {size}, not a number of tokens")
        return tokenizer

    @cached_property
    def encoder(self) -> Any:
        from transformers import CLIPTextConfig, CLIPTextModel

        path = self.folder / "text_encoder"
        # Former files carry the buffer of positions 0 … 76, which is no weight.
        tensors = {n: t for n, t in read_tensors(path / "model.safetensors").items() if not n.endswith("position_ids")}
        try:
            config = CLIPTextConfig.from_pretrained(path, local_files_only=True)
            with torch.random.fork_rng(devices=[]):  # it draws weights first; the caller's random numbers stay theirs
                encoder = CLIPTextModel._from_config(config, dtype=self.dtype)
        except Exception as error:  # transformers' errors have no class in common
            raise ValueError(f"{path / 'config.json'}: cannot build the text encoder ({_line(error)})") from None
        # transformers 4 puts "text_model." before every name and transformers 5 does not; files come in both forms.
        names = {name.removeprefix("text_model."): name for name in encoder.state_dict()}
        tensors = {names.get(n.removeprefix("text_model."), n): t.to(self.dtype) for n, t in tensors.items()}
        check_names(path / "model.safetensors", encoder.state_dict(), tensors)
        encoder.load_state_dict(tensors, strict=True, assign=True)  # memory-mapped: no copy
        return encoder.eval().requires_grad_(False).to(self.device)

    def prompt(self, text: str) -> Prompt:
        """A prompt with its tokens and words."""
        if not isinstance(text, str):
            raise ValueError(f"a prompt must be text, not {type(text).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"the prompt {text!r} has bytes in it that are not UTF-8 text")
        return Prompt.of(text, self.tokenizer)

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """Prompts -> the last hidden states, b n d (n: the tokenizer's length, 77)."""
        several: Any = prompts if isinstance(prompts, list | tuple) else [prompts]
        ids = torch.tensor([self.prompt(text).ids for text in several], device=self.device)
        return self.encoder(input_ids=ids).last_hidden_state
