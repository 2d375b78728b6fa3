"""Tokenizers and text encoders of `transformers` from their files. It is imported only when a model is loaded."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from minip2p.checkpoints.strict import check_keys
from minip2p.config import MAX_LAYERS, config_size
from minip2p.io.files import read_json
from minip2p.validation import is_integer

# What of a text encoder's configuration makes its numbers: the sizes, by transformers' defaults, and the rest.
SIZE_DEFAULTS: Mapping[str, int] = MappingProxyType(
    {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "projection_dim": 512,
        "eos_token_id": 49407,
    }
)


OTHER_FIELDS = (
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "pad_token_id",
    "initializer_range",
    "initializer_factor",
)


def one_line(error: Exception) -> str:
    """What an error of transformers says, which may be a paragraph, as one line."""
    return " ".join(str(error).split())


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a folder. Raises ValueError with one line for one that is broken."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # a broken vocabulary raises just this class
        raise ValueError(f"{path}: cannot be read as a tokenizer ({one_line(error)})") from None
    size: Any = read_json(path / "tokenizer_config.json").get("model_max_length")
    if not is_integer(size) or not 2 < size < 2**16:
        raise ValueError(f"{path / 'tokenizer_config.json'}: model_max_length is {size}, not a number of tokens")
    return tokenizer


def load_text_encoder(
    given: Mapping[str, Any], where: Path, tensors: Mapping[str, Tensor], file: Path, dtype: torch.dtype
) -> Any:
    """The text encoder of a configuration, which is from `where`, with the tensors of a file. Raises ValueError."""
    import transformers

    sizes = {name: config_size(given, name, default, where) for name, default in SIZE_DEFAULTS.items()}
    if sizes["num_hidden_layers"] > MAX_LAYERS:
        raise ValueError(f"{where}: num_hidden_layers is more than {MAX_LAYERS}")
    projects = given.get("architectures") == ["CLIPTextModelWithProjection"]
    kind: Any = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    # Former files carry the buffer of positions 0 … 76, which is no weight.
    tensors = {name: t for name, t in tensors.items() if not name.endswith("position_ids")}
    try:
        config = transformers.CLIPTextConfig.from_dict({k: given[k] for k in OTHER_FIELDS if k in given} | sizes)
        with torch.device("meta"):  # else it would draw weights first, for longer than all else here takes
            encoder = kind._from_config(config, dtype=dtype)
    except Exception as error:  # transformers' errors have no class in common
        raise ValueError(f"{where}: cannot build the text encoder ({one_line(error)})") from None
    # transformers 4 puts "text_model." before every name and transformers 5 does not; files come in both forms.
    names = {name.removeprefix("text_model."): name for name in encoder.state_dict()}
    tensors = {names.get(n.removeprefix("text_model."), n): t.to(dtype) for n, t in tensors.items()}
    check_keys(file, encoder.state_dict(), tensors)
    encoder.load_state_dict(tensors, strict=True, assign=True)  # memory-mapped: no copy
    for module in encoder.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "position_ids":  # 0 … 76, which no file has today
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
    return encoder.eval().requires_grad_(False)
