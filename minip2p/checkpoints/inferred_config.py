"""Infers the configurations of a model from the names and shapes of the tensors in a single file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from minip2p.checkpoints.key_maps import CLIP_PREFIXES, OPENCLIP_PREFIXES, UNET_PREFIX
from minip2p.checkpoints.stated_facts import StatedFacts

# How many layers of the official text encoders are read, by their width.
OFFICIAL_TEXT_LAYERS: Mapping[int, int] = MappingProxyType({768: 12, 1024: 23, 1280: 32})


class TextNames(NamedTuple):
    """How the tensors of a text encoder are named: the prefix of all, the prefix of its embeddings, and the style."""

    prefix: str
    embeddings: str
    is_openclip: bool


@dataclass(frozen=True)
class InferredConfig:
    """The configurations of the components in a single file, in the fields of diffusers' config.json files.

    location: the file, named in errors. shapes: of its tensors. facts: what the file states besides.
    Every method raises ValueError, with one line, if a tensor that it needs is missing.
    """

    location: Path
    shapes: Mapping[str, tuple[int, ...]]
    facts: StatedFacts

    @property
    def is_xl(self) -> bool:
        return UNET_PREFIX + "label_emb.0.0.weight" in self.shapes

    def has_prefix(self, prefix: str) -> bool:
        """Whether the name of any tensor begins with it."""
        return any(name.startswith(prefix) for name in self.shapes)

    def size(self, name: str, axis: int = 0) -> int:
        """The size of a tensor along an axis."""
        shape = self.shapes.get(name, ())
        if len(shape) <= axis:
            raise ValueError(
                f"{self.location}: {name} is missing or has too few dimensions, so the configuration cannot be inferred"
            )
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many different strings the group of a pattern matches in the tensors' names."""
        return len({match[1] for name in self.shapes if (match := re.match(pattern, name))})

    def unet(self) -> dict[str, Any]:
        """unet/config.json. Heads are 64 channels wide in models of OpenCLIP; in others there are 8."""
        blocks = self.count(re.escape(UNET_PREFIX) + r"input_blocks\.(\d+)\.")
        downsamplers = [n for n in range(blocks) if f"{UNET_PREFIX}input_blocks.{n}.0.op.weight" in self.shapes]
        layers = (downsamplers[0] if downsamplers else blocks) - 1
        # The first block of each level, after conv_in or the downsampler of the level before.
        firsts = [1, *(n + 1 for n in downsamplers)]
        widths = [self.size(f"{UNET_PREFIX}input_blocks.{n}.0.out_layers.3.weight") for n in firsts]
        down = [f"{UNET_PREFIX}input_blocks.{n}.1" for n in firsts]
        up = [f"{UNET_PREFIX}output_blocks.{level * (layers + 1)}.1" for level in range(len(widths))]
        middle = f"{UNET_PREFIX}middle_block.1"
        depths = [self.transformer_depth(block) for block in [*down[:-1], middle]]
        is_linear = len(self.shapes.get(f"{middle}.proj_in.weight", ())) == 2
        is_768_v = (
            self.has_openclip() and self.prediction_type() == "v_prediction"
        )  # Stable Diffusion 2 at 768 x 768 pixels
        config: dict[str, Any] = {
            "sample_size": 128 if self.is_xl else 96 if is_768_v else 64,
            "in_channels": self.size(f"{UNET_PREFIX}input_blocks.0.0.weight", 1),
            "out_channels": self.size(f"{UNET_PREFIX}out.2.weight"),
            "down_block_types": [self.block_type(block, "DownBlock2D") for block in down],
            "up_block_types": [self.block_type(block, "UpBlock2D") for block in up],
            "block_out_channels": widths,
            "layers_per_block": layers,
            "cross_attention_dim": self.size(f"{middle}.transformer_blocks.0.attn2.to_k.weight", 1),
            "attention_head_dim": [width // 64 for width in widths] if self.has_openclip() else 8,
            "transformer_layers_per_block": [max(depth, 1) for depth in depths],
            "use_linear_projection": is_linear,
        }
        if self.is_xl:
            embedding_width = self.size(f"{UNET_PREFIX}label_emb.0.0.weight", 1)
            pooled_width = self.projection_width()
            config |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": (embedding_width - pooled_width) // 6,
                "projection_class_embeddings_input_dim": embedding_width,
            }
        return config

    def transformer_depth(self, block: str) -> int:
        """How many transformer blocks a spatial transformer has; 0 if there is none of that name."""
        return self.count(re.escape(block) + r"\.transformer_blocks\.(\d+)\.")

    def block_type(self, block: str, plain_type: str) -> str:
        """The type of a UNet block, which depends on whether it has a spatial transformer of that name."""
        return f"CrossAttn{plain_type}" if self.transformer_depth(block) else plain_type

    def vae(self, prefix: str) -> dict[str, Any]:
        """vae/config.json. prefix: what its tensors' names begin with. A VAE alone does not tell its scaling factor."""
        levels = self.count(re.escape(prefix) + r"encoder\.down\.(\d+)\.")
        if not levels:
            raise ValueError(
                f"{self.location}: has no VAE in the names of the original code; a VAE in diffusers' names needs its "
                "config.json in the same folder"
            )
        config: dict[str, Any] = {
            "block_out_channels": [
                self.size(f"{prefix}encoder.down.{level}.block.0.conv1.weight") for level in range(levels)
            ],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": self.count(re.escape(prefix) + r"encoder\.down\.0\.block\.(\d+)\."),
            "latent_channels": self.size(f"{prefix}decoder.conv_in.weight", 1),
            "use_quant_conv": f"{prefix}quant_conv.weight" in self.shapes,
            "use_post_quant_conv": f"{prefix}post_quant_conv.weight" in self.shapes,
        }
        if self.has_prefix(UNET_PREFIX):
            config["scaling_factor"] = self.facts.scaling_factor or (0.13025 if self.is_xl else 0.18215)
        return config

    def lacks_prediction_type(self) -> bool:
        """Whether the file is a Stable Diffusion 2, which exists in both kinds, and does not state what it predicts."""
        is_stable_diffusion_2 = any(self.has_prefix(prefix) for prefix in OPENCLIP_PREFIXES["text_encoder"])
        return is_stable_diffusion_2 and self.facts.prediction_type is None

    def prediction_type(self) -> str:
        """What the UNet predicts: as the file states, or else noise. ValueError where it lacks a statement."""
        if self.lacks_prediction_type():
            raise ValueError(
                f"{self.location}: a Stable Diffusion 2 model predicts noise or v, and the file does not say which: "
                "pass a folder that does as config"
            )
        return self.facts.prediction_type or "epsilon"

    def scheduler(self) -> dict[str, Any]:
        """scheduler/scheduler_config.json: the noise schedule that all families share, and what the file states.

        A schedule that ends without any signal is sampled from its end (Lin et al. 2023, section 3.3).
        """
        config: dict[str, Any] = {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "prediction_type": self.prediction_type(),
        }
        if self.facts.is_zero_snr:
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return config | self.facts.betas

    def has_openclip(self) -> bool:
        """Whether a text encoder has OpenCLIP's names, as those of Stable Diffusion 2 and XL have."""
        return any(self.has_prefix(prefix) for prefixes in OPENCLIP_PREFIXES.values() for prefix in prefixes)

    def projection_width(self) -> int:
        """The width of the pooled text embedding of Stable Diffusion XL."""
        name = OPENCLIP_PREFIXES["text_encoder_2"][0] + "text_projection"
        return self.size(name + ".weight") if name + ".weight" in self.shapes else self.size(name, 1)

    def text_names(self, component: str) -> TextNames:
        """How the tensors of a text encoder are named in this file."""
        for prefix in CLIP_PREFIXES.get(component, ()):
            if self.has_prefix(prefix):
                inner = prefix + ("text_model." if self.has_prefix(prefix + "text_model.") else "")
                return TextNames(prefix, inner + "embeddings.", is_openclip=False)
        prefixes = OPENCLIP_PREFIXES[component]
        prefix = next(filter(self.has_prefix, prefixes), prefixes[0])
        return TextNames(prefix, prefix, is_openclip=True)

    def text_layers(self, component: str) -> int:
        """How many layers of a text encoder are read.

        Official encoders are recognized by their width and must have all their layers. Of others, all layers in the
        file are read, except for the last one of Stable Diffusion 2.
        """
        prefix, embeddings, is_openclip = self.text_names(component)
        layer = r"transformer\.resblocks" if is_openclip else r"(?:text_model\.)?encoder\.layers"
        layers = self.count(re.escape(prefix) + layer + r"\.(\d+)\.")
        is_stable_diffusion_2 = is_openclip and component == "text_encoder"
        width = self.size(f"{embeddings}token_embedding.weight", 1)
        return OFFICIAL_TEXT_LAYERS.get(width, layers - is_stable_diffusion_2)

    def text_encoder(self, component: str) -> dict[str, Any]:
        """config.json of text_encoder or text_encoder_2. Heads are 64 channels wide."""
        prefix, embeddings, is_openclip = self.text_names(component)
        vocabulary, width = (self.size(f"{embeddings}token_embedding.weight", axis) for axis in (0, 1))
        config = {
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "num_hidden_layers": self.text_layers(component),
            "vocab_size": vocabulary,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        }
        if is_openclip:
            has_projection = component == "text_encoder_2"
            return config | {
                "architectures": ["CLIPTextModelWithProjection" if has_projection else "CLIPTextModel"],
                "intermediate_size": self.size(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"),
                "max_position_embeddings": self.size(f"{prefix}positional_embedding"),
                "projection_dim": self.projection_width() if has_projection else width,
                "hidden_act": "gelu",
            }
        inner = embeddings.removesuffix("embeddings.")
        return config | {
            "intermediate_size": self.size(f"{inner}encoder.layers.0.mlp.fc1.weight"),
            "max_position_embeddings": self.size(f"{embeddings}position_embedding.weight"),
            "projection_dim": width,
            "hidden_act": "quick_gelu",
        }
