"""Textual inversion (Gal et al. 2022): files with embeddings that become new words of a tokenizer.

The words are added to copies of the tokenizer and of the token embeddings, in a twin of the text encoder that shares
everything else with it. A word of several vectors becomes several tokens, w, w_1, w_2, …, as in diffusers.

Axes: n vectors of a word, d width of a text encoder.
"""

import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from minip2p.checkpoints.adapter_files import EMBEDDING_NAMES, find_adapter
from minip2p.checkpoints.adapter_names import BUNDLED
from minip2p.checkpoints.text_encoders import load_tokenizer
from minip2p.errors import Notice
from minip2p.io.tensors import WEIGHT_DTYPES, printable, read_tensors
from minip2p.text.encoder import ClipEncoder, TextEncoder

# The names of the tensors of files that do not contain the word. Of Stable Diffusion 1 and 2: A1111 and kohya;
# OneTrainer (as it spells it); A1111's pickled files, converted.
SINGLE_KEYS = ("emb_params", "emp_params", "string_to_param.*", "string_to_param", "*")
# Of both text encoders of Stable Diffusion XL: A1111, kohya, OneTrainer; diffusers' training scripts.
PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
# The text encoder of a tensor's name; None is the only one that the model has.
KEY_ENCODERS: Mapping[str, str | None] = MappingProxyType(
    dict.fromkeys(SINGLE_KEYS)
    | {
        name: component
        for pair in PAIRS
        for name, component in zip(pair, ("text_encoder", "text_encoder_2"), strict=True)
    }
)
OUTPUT_SUFFIX = "_out"  # OneTrainer's output embeddings, which are added to the text encoder's output


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word and its vectors.

    file: named in errors. vectors: n d, by the name of the text encoder. A file of one tensor has it under
    "text_encoder".
    """

    file: Path
    word: str
    vectors: Mapping[str, Tensor]

    @classmethod
    def read(cls, where: str | Path, word: str | None = None) -> "Embedding":
        """Reads an embedding: a file, a folder, or a name on the hub.

        word: what prompts call it; None is the word that the file states (diffusers), or else the name of the file, as
        in A1111's web UI, which a Notice says.
        Raises FileNotFoundError, or ValueError with one line if it is not a textual-inversion embedding.
        """
        file = find_adapter(where, EMBEDDING_NAMES, "embedding")
        tensors = drop_output_embeddings(file, read_tensors(file))
        names = set(tensors)
        if len(tensors) == 1 and not names & KEY_ENCODERS.keys():
            ((stated, tensor),) = tensors.items()
            return cls(file, stated if word is None else word, {"text_encoder": tensor})
        if not names or not (len(names) == 1 or any(names == set(pair) for pair in PAIRS)):
            example = f" ({printable(min(names))}, …)" if names else ""
            raise ValueError(f"{file}: is not a textual-inversion embedding: it has {len(names)} tensors{example}")
        if word is None:
            word = file.stem
            warnings.warn(f"{file}: the word for it in prompts is {word!r}, the name of the file", Notice, stacklevel=3)
        return cls(file, word, {KEY_ENCODERS[name] or "text_encoder": tensor for name, tensor in tensors.items()})


def drop_output_embeddings(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without OneTrainer's output embeddings. A Notice says that they are not read."""
    inputs = {name: tensor for name, tensor in tensors.items() if not is_output(name)}
    if len(inputs) < len(tensors):
        warnings.warn(f"{file}: OneTrainer's output embeddings are not read", Notice, stacklevel=3)
    return inputs


def is_output(name: str) -> bool:
    return name.endswith(OUTPUT_SUFFIX) and name.removesuffix(OUTPUT_SUFFIX) in KEY_ENCODERS


def bundled_embeddings(file: Path, tensors: Mapping[str, Tensor]) -> tuple[list[Embedding], dict[str, Tensor]]:
    """The embeddings that a LoRA file brings along, and its other tensors."""
    words: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = BUNDLED.fullmatch(name)
        if match is None:
            others[name] = tensor
        else:
            words.setdefault(match["word"], {})[match["key"]] = tensor
    embeddings = []
    for word, by_key in words.items():
        vectors = drop_output_embeddings(file, by_key)
        if vectors:
            encoders = {KEY_ENCODERS[key] or "text_encoder": tensor for key, tensor in vectors.items()}
            embeddings.append(Embedding(file, word, encoders))
    return embeddings, others


def add_embedding(text: TextEncoder, embedding: Embedding) -> TextEncoder:
    """A text encoder that knows the word of an embedding; `text` does not change.

    Raises ValueError where the vectors do not fit the encoders, or the word is not a new one.
    """
    file, word = embedding.file, embedding.word
    if not isinstance(word, str) or not word or word != word.strip():
        raise ValueError(f"{file}: the word of an embedding is text without spaces around it, not {word!r}")
    if embedding.vectors.keys() != text.encoders.keys():
        kinds = {1: "Stable Diffusion 1 or 2 (one text encoder)", 2: "SDXL (two text encoders)"}
        raise ValueError(
            f"{file}: is an embedding for {kinds[len(embedding.vectors)]}, and the model is one of "
            f"{kinds[len(text.encoders)]}"
        )
    vectors = {e.name: check_vectors(file, embedding.vectors[e.name], e) for e in text.clip_encoders}
    if len({len(tensor) for tensor in vectors.values()}) > 1:
        raise ValueError(f"{file}: has different numbers of vectors for the two text encoders")
    remedy = "rename the file, or give" if word == file.stem else "give"
    remedy += " the embedding another word in Python, by token="
    for encoder in text.clip_encoders:
        vocabulary = encoder.tokenizer.get_vocab()
        if clash := next((name for name in (word, f"{word}_1") if name in vocabulary), None):
            raise ValueError(f"{file}: {printable(clash)} is already in the tokenizer's vocabulary: {remedy}")
        if base := continued_word(word, encoder.tokenizer.get_added_vocab()):
            raise ValueError(
                f"{file}: {printable(word)} would be read as one more vector of {printable(base)}: {remedy}"
            )
    extended = tuple(extend_encoder(encoder, word, vectors[encoder.name]) for encoder in text.clip_encoders)
    return replace(text, clip_encoders=extended)


def continued_word(word: str, added: Collection[str]) -> str | None:
    """The added token of which a word would be the next vector, as "toy_1" is of "toy"; None if there is none."""
    base, sign, n = word.rpartition("_")
    if not sign or not n.isdecimal() or str(int(n)) != n or int(n) < 1:
        return None
    before = base if n == "1" else f"{base}_{int(n) - 1}"
    return base if before in added and base in added else None


def check_vectors(file: Path, tensor: Tensor, encoder: ClipEncoder) -> Tensor:
    """The vectors of an embedding, n d. Raises ValueError where they do not fit the encoder or are not finite."""
    vectors = tensor[None] if tensor.ndim == 1 else tensor
    if vectors.ndim != 2 or not 0 < len(vectors) < encoder.max_tokens - 1 or vectors.shape[1] != encoder.width:
        raise ValueError(
            f"{file}: has an embedding of shape {tuple(tensor.shape)}, but {encoder.name} reads vectors of "
            f"{encoder.width} numbers, and {encoder.max_tokens - 2} of them at most: it is for another model"
        )
    if vectors.dtype not in WEIGHT_DTYPES or not torch.isfinite(vectors.float()).all():
        raise ValueError(f"{file}: an embedding is not finite or not of a floating-point dtype")
    return vectors


def extend_encoder(encoder: ClipEncoder, word: str, vectors: Tensor) -> ClipEncoder:
    """A CLIP encoder with new tokens word, word_1, … that have these vectors, n d."""
    tokenizer = load_tokenizer(encoder.tokenizer_path)  # a deep copy of a tokenizer would decode otherwise
    tokenizer.model_max_length = encoder.tokenizer.model_max_length
    words = [word, *(f"{word}_{n}" for n in range(1, len(vectors)))]
    earlier = sorted(encoder.tokenizer.added_tokens_decoder.items())
    for token in (*(token for _, token in earlier), *words):
        tokenizer.add_tokens(token)
    ids = tokenizer.convert_tokens_to_ids(words)
    network = twin(encoder.network)
    before = network.get_input_embeddings().weight
    after = before.new_zeros(max(len(before), *(i + 1 for i in ids)), before.shape[1])
    after[: len(before)] = before
    after[torch.tensor(ids, device=after.device)] = vectors.to(after)
    network.set_input_embeddings(nn.Embedding.from_pretrained(after, freeze=True))
    network.config.vocab_size = len(after)
    read_end_of_text(network, tokenizer.eos_token_id)
    return replace(encoder, network=network, tokenizer=tokenizer)


def read_end_of_text(network: Any, eos_token_id: int) -> None:
    """Makes a text encoder find the end of the text by its token.

    Old configurations state 2 as the token, for which transformers takes the largest id: that of an added token.
    """
    network.config.eos_token_id = eos_token_id
    for module in network.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = eos_token_id


def twin(network: Any) -> Any:
    """A copy of a network that shares all of its tensors."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return deepcopy(network, shared)
