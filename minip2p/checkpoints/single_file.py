"""A model in one .safetensors file, in the names of the original codes.

Such a file has neither configurations nor tokenizers. The small files of a folder in diffusers' layout, of the same
family, say what the model is; what the folder does not have is read off the file's keys and shapes, but for tokenizers.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from minip2p.checkpoints.diffusers_folder import PICKLED_SUFFIXES, DiffusersFolder
from minip2p.checkpoints.key_maps import (
    IGNORED,
    compvis_unet_key,
    compvis_vae_key,
    convert_tensor,
    openclip_key,
    openclip_tensor_names,
)
from minip2p.checkpoints.strict import build_on_meta
from minip2p.config import UNetConfig, VAEConfig, config_size
from minip2p.io.tensors import printable, read_metadata, read_tensors
from minip2p.unet import UNet
from minip2p.vae import VAE

Shapes = Mapping[str, tuple[int, ...]]


UNET, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."


BARE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # of a VAE alone


# Of each text encoder, by its part: where a file may have it. Those of OpenCLIP have their own names.
TRANSFORMERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"text_encoder": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")}
)


OPENCLIP: Mapping[str, str] = MappingProxyType(
    {"text_encoder": "cond_stage_model.model.", "text_encoder_2": "conditioner.embedders.1.model."}
)


LAYERS: Mapping[int, int] = MappingProxyType({768: 12, 1024: 23, 1280: 32})  # of the official text encoders, by width


PREDICTIONS: Mapping[str, str] = MappingProxyType({"epsilon": "epsilon", "v": "v_prediction"})  # in a file's metadata


class SingleFile:
    """The parts of a model in a file. config: a folder of its family, for what the file does not have."""

    def __init__(self, file: Path, config: Path | None):
        if file.suffix in PICKLED_SUFFIXES:
            raise ValueError(f"{file}: is pickled, and so a program, which is never run here: get it as safetensors")
        self.location, self.folder = file, None if config is None else DiffusersFolder(config)
        self.root = file if config is None else config
        self.all_tensors = read_tensors(file)
        self.shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in self.all_tensors.items()}
        self.metadata, self.xl = read_metadata(file), UNET + "label_emb.0.0.weight" in self.all_tensors
        self.vae_prefix = VAE_PREFIX if self.has_prefix(VAE_PREFIX) else ""
        known = (UNET, VAE_PREFIX, *BARE, "cond_stage_model.", "conditioner.embedders.")
        if odd := [name for name in self.all_tensors if not name.startswith(known) and not IGNORED.match(name)]:
            raise ValueError(
                f"{file}: {printable(odd[0])} is of no model that is known here; such a file has {UNET}… "
                "in it, or a VAE's encoder.…"
            )

    def has(self, part: str) -> bool:
        return any(map(self.has_prefix, self.prefixes(part)))

    def prefixes(self, part: str) -> tuple[str, ...]:
        """Where the file may have a part."""
        networks = {"unet": (UNET,), "vae": (VAE_PREFIX, *BARE)}
        return networks.get(part) or (*TRANSFORMERS.get(part, ()), *((OPENCLIP[part],) if part in OPENCLIP else ()))

    def config_file(self, part: str) -> Path:
        """What to name where a configuration is wrong: the folder's file, or this one where it has none."""
        given = self.location if self.folder is None else self.folder.config_file(part)
        return given if given.is_file() else self.location

    def config(self, part: str) -> dict[str, Any]:
        """The folder's, or what is derived where it has none; how many channels a UNet reads, the file knows itself.
        Raises ValueError where the two do not agree on what is predicted."""
        if self.folder is not None and self.folder.config_file(part).is_file():
            given = self.folder.config(part)
            if part == "unet":
                given = given | {"in_channels": self.size(f"{UNET}input_blocks.0.0.weight", 1)}
            said = PREDICTIONS.get(self.metadata.get("modelspec.prediction_type", ""))
            if part == "scheduler" and said and said != given.get("prediction_type", "epsilon"):
                raise ValueError(
                    f"{self.config_file(part)}: {self.location} says of itself that it predicts {said}, and this does not"
                )
            return given
        made: Mapping[str, Callable[[], dict[str, Any]]] = {
            "": dict,
            "unet": self.unet_config,
            "vae": self.vae_config,
            "scheduler": self.scheduler_config,
        }
        return made[part]() if part in made else self.text_config(part)

    def tokenizer(self, part: str) -> Path:
        if self.folder is None:
            raise ValueError(
                f"{self.location}: a single file has no tokenizer: give, as config, a folder in diffusers' "
                "layout of the same family; its weights are not read"
            )
        return self.folder.tokenizer(part)

    def tensors(self, part: str) -> tuple[dict[str, Tensor], Path]:
        """A part's weights by our names. Raises ValueError for tensors of the part that have no place in it."""
        used, found = {}, {}
        for ours, theirs in self.names(part).items():
            if theirs not in self.all_tensors:
                raise ValueError(f"{self.location}: {theirs} is missing")
            used[theirs], found[ours] = True, convert_tensor(ours, theirs, self.all_tensors[theirs])
        layers = self.layers(part) if part == "text_encoder" else 0
        left = [name for name in self.all_tensors if name not in used and not IGNORED.match(name)]
        if odd := [name for name in left if self.belongs(name, part, layers)]:
            raise ValueError(f"{self.location}: {printable(odd[0])} is not a tensor of this model")
        return found, self.location

    def belongs(self, name: str, part: str, layers: int) -> bool:
        # Stable Diffusion 2 does not read the last layer, and no projection.
        if layer := re.match(re.escape(OPENCLIP["text_encoder"]) + r"transformer\.resblocks\.(\d{1,3})\.", name):
            return part == "text_encoder" and int(layer[1]) < layers
        unread = name == OPENCLIP["text_encoder"] + "text_projection"
        return name.startswith(self.prefixes(part)) and not unread

    def names(self, part: str) -> dict[str, str]:
        """Our names of a part's tensors -> the file's."""
        if part == "unet":
            unet = UNetConfig.from_dict(self.config("unet"), str(self.config_file("unet")))
            return {
                name: UNET + compvis_unet_key(name, unet)
                for name in build_on_meta(lambda: UNet(unet), self.config_file(part)).state_dict()
            }
        if part == "vae":
            vae = VAEConfig.from_dict(self.config("vae"), str(self.config_file("vae")))
            return {
                name: self.vae_prefix + compvis_vae_key(name, vae)
                for name in build_on_meta(lambda: VAE(vae), self.config_file(part)).state_dict()
            }
        prefix, _, open_clip = self.text_names(part)
        if open_clip:
            ours = openclip_tensor_names(self.layers(part), part == "text_encoder_2")
            return {name: prefix + openclip_key(name) for name in ours}
        return {
            name.removeprefix(prefix).removeprefix("text_model."): name
            for name in self.all_tensors
            if name.startswith(prefix) and not IGNORED.match(name)
        }

    # What the sizes tell

    def size(self, name: str, axis: int = 0) -> int:
        """Of a tensor along an axis. Raises ValueError where it is missing."""
        if name not in self.shapes or len(self.shapes[name]) <= axis:
            raise ValueError(f"{self.location}: {name} is missing, or of no shape that tells what the model is")
        return self.shapes[name][axis]

    def count(self, pattern: str) -> int:
        """How many different numbers stand in the place of a pattern's group."""
        return len({match[1] for name in self.all_tensors if (match := re.match(pattern, name))})

    def layers(self, part: str) -> int:
        """How many layers of a text encoder are read: as the folder says; of the official ones, which are known by
        their width, so many, and fewer are too few; of others all that are there, but Stable Diffusion 2's last."""
        if self.folder is not None and self.folder.config_file(part).is_file():
            return config_size(self.folder.config(part), "num_hidden_layers", 12, self.config_file(part))
        prefix, first, open_clip = self.text_names(part)
        pattern = r"transformer\.resblocks" if open_clip else r"(?:text_model\.)?encoder\.layers"
        there = self.count(re.escape(prefix) + pattern + r"\.(\d+)\.")
        return LAYERS.get(
            self.size(f"{first}token_embedding.weight", 1), there - (open_clip and part == "text_encoder")
        )

    def unet_config(self) -> dict[str, Any]:
        """Of the UNet: levels end with a resampler; heads are 8, or 64 wide where the projections are linear."""
        blocks = self.count(re.escape(UNET) + r"input_blocks\.(\d+)\.")
        ends = [n for n in range(blocks) if f"{UNET}input_blocks.{n}.0.op.weight" in self.all_tensors]
        layers = (ends[0] if ends else blocks) - 1
        firsts = [1, *(end + 1 for end in ends)]
        widths = [self.size(f"{UNET}input_blocks.{n}.0.out_layers.3.weight") for n in firsts]
        up = [f"{UNET}output_blocks.{level * (layers + 1)}.1" for level in range(len(widths))]
        depths = [self.depth(f"{UNET}input_blocks.{n}.1") for n in firsts[:-1]] + [self.depth(f"{UNET}middle_block.1")]
        linear = len(self.shapes.get(f"{UNET}middle_block.1.proj_in.weight", ())) == 2
        middle = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        made: dict[str, Any] = {
            "sample_size": 128 if self.xl else 96 if linear and self.prediction() == "v_prediction" else 64,
            "in_channels": self.size(f"{UNET}input_blocks.0.0.weight", 1),
            "out_channels": self.size(f"{UNET}out.2.weight"),
            "down_block_types": [self.block(f"{UNET}input_blocks.{n}.1", "DownBlock2D") for n in firsts],
            "up_block_types": [self.block(block, "UpBlock2D") for block in up],
            "block_out_channels": widths,
            "layers_per_block": layers,
            "cross_attention_dim": self.size(middle, 1),
            "attention_head_dim": [width // 64 for width in widths] if linear else 8,
            "transformer_layers_per_block": [max(depth, 1) for depth in depths],
            "use_linear_projection": linear,
        }
        if self.xl:
            joined = self.size(f"{UNET}label_emb.0.0.weight", 1)
            pooled = self.size(OPENCLIP["text_encoder_2"] + "text_projection", 1)
            made |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": (joined - pooled) // 6,
                "projection_class_embeddings_input_dim": joined,
            }
        return made

    def block(self, block: str, plain: str) -> str:
        return "CrossAttn" + plain if self.depth(block) else plain

    def depth(self, block: str) -> int:
        """How many transformer blocks stand in a block."""
        return self.count(re.escape(block) + r"\.transformer_blocks\.(\d+)\.")

    def vae_config(self) -> dict[str, Any]:
        prefix = self.vae_prefix
        levels = self.count(re.escape(prefix) + r"encoder\.down\.(\d+)\.")
        if not levels:
            raise ValueError(
                f"{self.location}: no VAE in the original names; that of diffusers has a config.json beside"
            )
        widths = [self.size(f"{prefix}encoder.down.{level}.block.0.conv1.weight") for level in range(levels)]
        scale = {"scaling_factor": 0.13025 if self.xl else 0.18215}
        return (scale if self.has_prefix(UNET) else {}) | {  # alone it does not tell
            "block_out_channels": widths,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": self.count(re.escape(prefix) + r"encoder\.down\.0\.block\.(\d+)\."),
            "latent_channels": self.size(f"{prefix}decoder.conv_in.weight", 1),
            "use_quant_conv": f"{prefix}quant_conv.weight" in self.all_tensors,
            "use_post_quant_conv": f"{prefix}post_quant_conv.weight" in self.all_tensors,
        }

    def prediction(self) -> str:
        """Of noise; of Stable Diffusion 2, of which there are both kinds, what the file's metadata say. Raises
        ValueError where they say nothing."""
        said = PREDICTIONS.get(self.metadata.get("modelspec.prediction_type", ""))
        if said is None and self.has_prefix(OPENCLIP["text_encoder"]):
            raise ValueError(
                f"{self.location}: a Stable Diffusion 2 predicts noise or v, and the file does not say "
                "which: give, as config, a folder that does"
            )
        return said or "epsilon"

    def scheduler_config(self) -> dict[str, Any]:
        return {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "prediction_type": self.prediction(),
        }

    def text_config(self, part: str) -> dict[str, Any]:
        """Of a text encoder, whose heads are 64 wide."""
        prefix, first, open_clip = self.text_names(part)
        words, width = (self.size(f"{first}token_embedding.weight", axis) for axis in (0, 1))
        made = {
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "num_hidden_layers": self.layers(part),
            "vocab_size": words,
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
        }
        if open_clip:
            second = part == "text_encoder_2"
            return made | {
                "architectures": ["CLIPTextModelWithProjection" if second else "CLIPTextModel"],
                "intermediate_size": self.size(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"),
                "max_position_embeddings": self.size(f"{prefix}positional_embedding"),
                "projection_dim": self.size(f"{prefix}text_projection", 1) if second else width,
                "hidden_act": "gelu",
            }
        inner = first.removesuffix("embeddings.")
        return made | {
            "intermediate_size": self.size(f"{inner}encoder.layers.0.mlp.fc1.weight"),
            "max_position_embeddings": self.size(f"{first}position_embedding.weight"),
            "projection_dim": width,
            "hidden_act": "quick_gelu",
        }

    def text_names(self, part: str) -> tuple[str, str, bool]:
        """Of a text encoder: its prefix, that of its embeddings, and whether it has OpenCLIP's names."""
        for prefix in TRANSFORMERS.get(part, ()):
            if self.has_prefix(prefix):
                inner = prefix + ("text_model." if self.has_prefix(prefix + "text_model.") else "")
                return prefix, inner + "embeddings.", False
        return OPENCLIP[part], OPENCLIP[part], True

    def has_prefix(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.all_tensors)
