"""Loads tokenizers and text encoders, whose classes are those of `transformers`, from a checkpoint's files.

`transformers` is imported only when a model is loaded, which keeps `minip2p --help` quick.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from minip2p.checkpoints.file_formats import REFINER
from minip2p.checkpoints.files import CheckpointFiles
from minip2p.checkpoints.strict import check_keys
from minip2p.config import MAX_LAYERS, config_size
from minip2p.io.files import TOKENIZER_FILES, plain_text_folder, read_json
from minip2p.text.encoder import ClipEncoder, TextEncoder
from minip2p.validation import is_integer

# The fields of a text encoder's config.json that change its numbers: the sizes, with the defaults of transformers …
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
# … and the others.
OTHER_FIELDS = (
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "pad_token_id",
    "initializer_range",
    "initializer_factor",
)

# transformers writes 1e30 as the model_max_length of a tokenizer whose files state none.
UNSTATED_LENGTH = 10**29


def load_text(
    files: CheckpointFiles, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[TextEncoder, dict[str, Path]]:
    """Loads a checkpoint's text encoders and tokenizers.

    Returns the text encoder, and the file of weights of each of its networks by the name of its folder.
    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    if is_refiner(files):
        raise ValueError(f"{files.location}: {REFINER}")
    suffixes = ("", "_2") if files.has("text_encoder_2") else ("",)
    encoders: list[ClipEncoder] = []
    weights: dict[str, Path] = {}
    for suffix in suffixes:
        encoder, weights[f"text_encoder{suffix}"] = load_clip_encoder(files, suffix, dtype, device)
        encoders.append(encoder)
    lengths = [encoder.max_tokens for encoder in encoders]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{files.location}: its tokenizers cut prompts to {' and '.join(map(str, lengths))} tokens, and the "
            "embeddings of the two text encoders are concatenated token by token"
        )
    two = len(encoders) > 1
    zero_empty = two and files.config("").get("force_zeros_for_empty_prompt", True) is not False  # diffusers' default
    return TextEncoder(tuple(encoders), zero_empty), weights


def is_refiner(files: CheckpointFiles) -> bool:
    """Whether a model is the refiner of Stable Diffusion XL, whose UNet reads the second text encoder alone."""
    if files.has("text_encoder") or not files.has("text_encoder_2"):
        return False
    return files.config("unet").get("cross_attention_dim") == files.config("text_encoder_2").get("hidden_size")


def load_clip_encoder(
    files: CheckpointFiles, suffix: str, dtype: torch.dtype, device: torch.device | str
) -> tuple[ClipEncoder, Path]:
    """Loads "text_encoder" and "tokenizer", or those whose names end in "_2"; also returns the file of the weights."""
    name = f"text_encoder{suffix}"
    tokenizer_path = files.tokenizer(f"tokenizer{suffix}")
    config, config_file = files.config(name), files.config_file(name)
    width, pooled_width = (config_size(config, field, 512, config_file) for field in ("hidden_size", "projection_dim"))
    tokenizer = load_tokenizer(tokenizer_path)
    tensors, file = files.tensors(name, dtype)
    network = load_text_encoder(config, config_file, tensors, file, dtype=dtype)
    limit = network.config.max_position_embeddings
    if tokenizer.model_max_length >= UNSTATED_LENGTH:
        tokenizer.model_max_length = limit
    if tokenizer.model_max_length > limit:
        raise ValueError(
            f"{tokenizer_path / 'tokenizer_config.json'}: model_max_length is {tokenizer.model_max_length}, but the "
            f"text encoder takes {limit} tokens"
        )
    if len(tokenizer) > network.config.vocab_size:
        raise ValueError(
            f"{tokenizer_path}: has {len(tokenizer)} tokens, but the text encoder has {network.config.vocab_size}"
        )
    return ClipEncoder(name, network.to(device), tokenizer, tokenizer_path, width, pooled_width), file


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a folder. Raises ValueError with one line for a broken one.

    Its model_max_length is at least UNSTATED_LENGTH if its files do not state one.
    """
    from transformers import CLIPTokenizer

    with plain_text_folder(path, TOKENIZER_FILES) as folder:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # a broken vocabulary raises plain Exception
            raise ValueError(f"{path}: cannot be read as a tokenizer ({one_line(error)})") from None
    size: Any = read_json(path / "tokenizer_config.json").get("model_max_length")
    if size is None:
        tokenizer.model_max_length = UNSTATED_LENGTH
    elif not is_integer(size) or not (2 < size < 2**16 or size >= UNSTATED_LENGTH):
        raise ValueError(f"{path / 'tokenizer_config.json'}: model_max_length is {size}, not a number of tokens")
    return tokenizer


def load_text_encoder(
    fields: Mapping[str, Any], config_file: Path, tensors: Mapping[str, Tensor], file: Path, *, dtype: torch.dtype
) -> Any:
    """Builds the text encoder that a config.json describes and gives it the tensors of a file.

    fields: of the config.json. config_file, file: named in errors. Raises ValueError with one line.
    """
    import transformers

    sizes = {name: config_size(fields, name, default, config_file) for name, default in SIZE_DEFAULTS.items()}
    if sizes["num_hidden_layers"] > MAX_LAYERS:
        raise ValueError(f"{config_file}: num_hidden_layers is more than {MAX_LAYERS}")
    projects = fields.get("architectures") == ["CLIPTextModelWithProjection"]
    kind: Any = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    try:
        others = {name: fields[name] for name in OTHER_FIELDS if name in fields}
        config = transformers.CLIPTextConfig.from_dict(others | sizes)
        with torch.device("meta"):  # skips the random initialisation, which would take longer than the loading
            encoder = kind._from_config(config, dtype=dtype)
    except Exception as error:  # transformers' errors have no class in common
        raise ValueError(f"{config_file}: cannot build the text encoder ({one_line(error)})") from None
    # Old files contain the buffer of positions 0 … 76, which is no weight.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    # transformers 4 puts "text_model." before every name and transformers 5 does not; files exist in both forms.
    names = {name.removeprefix("text_model."): name for name in encoder.state_dict()}
    renamed = {names.get(name.removeprefix("text_model."), name): tensor.to(dtype) for name, tensor in tensors.items()}
    check_keys(file, encoder.state_dict(), renamed)
    encoder.load_state_dict(renamed, strict=True, assign=True)  # memory-mapped: no copy
    for module in encoder.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "position_ids":  # not in the file: fill the meta buffer
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
    return encoder.eval().requires_grad_(False)


def one_line(error: Exception) -> str:
    """The message of an error, which may be a paragraph, as one line."""
    return " ".join(str(error).split())
