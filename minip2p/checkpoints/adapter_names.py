"""What the tensors of adapter files (LoRA and its relatives) are called by the tools that write them.

The tools are kohya's scripts, LyCORIS, diffusers and PEFT (old and new), OneTrainer, SimpleTuner, ai-toolkit and
ComfyUI. A name is a prefix that says which network, the layer's name in one of two naming schemes, with dots or with
underscores, and a suffix that says what the tensor is. All of the three are listed here, and so are the names by which
other kinds of files are recognised.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from minip2p.checkpoints.key_maps import compvis_unet_key
from minip2p.config import UNetConfig

# What a tensor is: A (r i), B (o r), the number α, DoRA's magnitudes m, a difference of a weight or of a bias.
DOWN, UP, ALPHA, MAGNITUDE, DORA_SCALE, DIFFERENCE, BIAS_DIFFERENCE = (
    "down",
    "up",
    "alpha",
    "magnitude",
    "dora_scale",
    "difference",
    "bias_difference",
)
# Suffix -> what the tensor is. {adapter} is the name that PEFT gave to the adapter, such as default.
SUFFIXES: Mapping[str, str] = MappingProxyType(
    {
        # kohya, LyCORIS, OneTrainer, ComfyUI
        ".lora_down.weight": DOWN,
        ".lora_up.weight": UP,
        ".alpha": ALPHA,
        ".dora_scale": DORA_SCALE,
        ".diff": DIFFERENCE,
        ".diff_b": BIAS_DIFFERENCE,
        ".w_norm": DIFFERENCE,
        ".b_norm": BIAS_DIFFERENCE,
        # PEFT, and diffusers since 0.22
        ".lora_A.weight": DOWN,
        ".lora_B.weight": UP,
        ".lora_A.{adapter}.weight": DOWN,
        ".lora_B.{adapter}.weight": UP,
        ".lora_A": DOWN,
        ".lora_B": UP,
        ".lora_magnitude_vector": MAGNITUDE,
        ".lora_magnitude_vector.weight": MAGNITUDE,
        ".lora_magnitude_vector.{adapter}": MAGNITUDE,
        ".lora_magnitude_vector.{adapter}.weight": MAGNITUDE,
        # ai-toolkit
        ".magnitude": MAGNITUDE,
        # diffusers before: layers, attention processors, and text encoders
        ".lora.down.weight": DOWN,
        ".lora.up.weight": UP,
        "_lora.down.weight": DOWN,
        "_lora.up.weight": UP,
        ".lora_linear_layer.down.weight": DOWN,
        ".lora_linear_layer.up.weight": UP,
    }
)
SUFFIX_PATTERNS = tuple(
    (re.compile(re.escape(suffix).replace(r"\{adapter\}", r"[^.]+") + "$"), role) for suffix, role in SUFFIXES.items()
)

# Network -> what the names of its layers begin with: diffusers; kohya; PEFT (text_model.); OneTrainer; ComfyUI;
# SimpleTuner. A UNet's may begin with nothing.
PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "unet": ("unet.", "lora_unet_", "diffusion_model.", "model.diffusion_model.", "lycoris_"),
        "text_encoder": (
            "text_encoder.",
            "lora_te_",
            "lora_te1_",
            "text_model.",
            "clip_l.",
            "text_encoders.clip_l.transformer.",
            "text_encoders.clip_h.transformer.",
        ),
        "text_encoder_2": ("text_encoder_2.", "lora_te2_", "clip_g.", "text_encoders.clip_g.transformer."),
    }
)
# Parts of names that PEFT, torch.compile, DistributedDataParallel and diffusers' attention processors add.
WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "processor.")
WRAPPER_PATTERN = re.compile(r"(?<![^.])(?:" + "|".join(map(re.escape, WRAPPERS)) + ")")
# Layers as diffusers' older versions call them, at the end of the name -> their names now.
OLD_LAYERS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "unet": MappingProxyType({"to_out": "to_out_0"}),
        "text_encoder": MappingProxyType({f"self_attn_to_{x}": f"self_attn_{x}_proj" for x in ("q", "k", "v", "out")}),
    }
)
# transformers 4 puts this before the names of a text encoder's layers, and so do nearly all files.
TEXT_MODEL = "text_model_"
# Changes of these layers change nothing: Stable Diffusion does not read the projection of its first text encoder.
UNREAD_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType({"text_encoder": ("text_projection",)})
# Tensors that say nothing about the weights.
IGNORED_PREFIXES = ("_aux.",)
# An embedding that is bundled with a LoRA (OneTrainer, A1111's web UI): its word, and what it is.
BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+?)\.(?P<key>(?:clip_l|clip_g)(?:_out)?|string_to_param(?:\.\*)?)")

EMBEDDING = "a textual-inversion embedding: give it with --embedding, or to Pipeline.with_embedding"
NOT_MERGED = "which minip2p does not merge"
# Other kinds of files: a pattern that one of their names matches -> what such a file is.
OTHER_KINDS: Mapping[str, str] = MappingProxyType(
    {
        r"\.hada_[wt]\d": f"a LoHa (LyCORIS: Hadamard products of low-rank matrices), {NOT_MERGED}",
        r"\.lokr_[wt]\d": f"a LoKr (LyCORIS: Kronecker products), {NOT_MERGED}",
        r"\.lora_mid\.weight$": f"a LoCon in Tucker (CP) form, {NOT_MERGED}",
        r"\.on_input$|\.ia3_l": f"an (IA)^3 adapter (factors of activations), {NOT_MERGED}",
        r"\.(a1|a2|b1|b2|bm|bm1|bm2)\.weight$": f"a GLoRA, {NOT_MERGED}",
        r"\.boft_[RS]": f"a BOFT (orthogonal fine-tuning by butterflies), {NOT_MERGED}",
        r"\.oft_(blocks|diag|R|r)|^oft_unet_": f"an OFT or BOFT (orthogonal fine-tuning), {NOT_MERGED}",
        r"\.vera_lambda|(^|\.)vera_[AB]": f"a VeRA, {NOT_MERGED}",
        r"\.(lambda_layer|[pq]_layer\.weight)$": f"a T-LoRA (ranks that depend on the time step), {NOT_MERGED}",
        r"\.hra_u": f"an HRA (Householder reflections), {NOT_MERGED}",
        r"\.fourierft_": f"a FourierFT, {NOT_MERGED}",
        r"\.lora_embedding_[AB]": f"a LoRA of the embeddings of tokens, {NOT_MERGED}",
        r"\.lora_[AB](\.[^.]+)?\.bias$": f"a LoRA with biases (PEFT's lora_bias), {NOT_MERGED}",
        r"\.(set_weight|reshape_weight)$": f"a file of weights that replace others (ComfyUI), {NOT_MERGED}",
        r"^(unet|text_encoder):\d+:(up|down)$": "a LoRA whose layers have numbers instead of names (cloneofsimo's), "
        + NOT_MERGED,
        r"custom_diffusion": f"a Custom Diffusion adapter, {NOT_MERGED}",
        r"^(image_proj|ip_adapter)\.": "an IP-Adapter, which is not a LoRA",
        r"^lllite_": "a ControlNet-LLLite, which is not a LoRA",
        r"^lora_controlnet$|^(control_model|controlnet_\w+|input_hint_block|zero_convs)\.": "a ControlNet, "
        "which is not a LoRA",
        r"^(em[bp]_params|clip_[lg]|text_encoders_[01]|string_to_param)(\.\*)?(_out)?$|^<[^<>]+>$": EMBEDDING,
    }
)
# Whole networks, by names without any suffix of `SUFFIXES`.
WHOLE_NETWORKS: Mapping[str, str] = MappingProxyType(
    {
        r"^(model\.diffusion_model|cond_stage_model|conditioner)\.": "a whole model, not a LoRA: give it with --model",
        r"^(diffusion_model\.)?(input_blocks|conv_in|down_blocks)\.": "the weights of a UNet, not a LoRA",
        r"^(first_stage_model\.)?((encoder|decoder)\.(conv_in|mid|mid_block)|quant_conv)\.": "a VAE, not a LoRA: "
        "give it with --vae",
        r"^(text_model\.)?(embeddings|encoder\.layers)\.": "the weights of a text encoder, not a LoRA",
    }
)


class Layer(NamedTuple):
    """A layer of a model: its network ("unet", "text_encoder", "text_encoder_2") and its name in that network."""

    component: str
    name: str


def split_suffix(name: str) -> tuple[str, str] | None:
    """A tensor's name -> the name of its layer, and what the tensor is. None if it has no suffix of an adapter."""
    for pattern, role in SUFFIX_PATTERNS:
        if match := pattern.search(name):
            return name[: match.start()], role
    return None


def other_kind(names: Iterable[str]) -> str | None:
    """What a file is if it is not of a kind that can be merged, by the names of its tensors; None if it may be."""
    foreign = [name for name in names if split_suffix(name) is None and not BUNDLED.fullmatch(name)]
    for kinds in (OTHER_KINDS, WHOLE_NETWORKS):
        for pattern, kind in kinds.items():
            if any(re.search(pattern, name) for name in foreign):
                return kind
    return None


@dataclass(frozen=True)
class LayerNames:
    """The layers of a model by the names that files may give them.

    layers: network -> a layer's name with underscores instead of dots, in both naming schemes -> its name.
    """

    layers: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, networks: Mapping[str, Iterable[str]], unet_config: UNetConfig) -> "LayerNames":
        """networks: the names of the layers of each network; those of text encoders with or without "text_model."."""
        layers: dict[str, dict[str, str]] = {}
        for component, names in networks.items():
            table = layers.setdefault(component, {})
            for name in names:
                table[name.replace(".", "_").removeprefix("" if component == "unet" else TEXT_MODEL)] = name
                if component == "unet":
                    original = compvis_unet_key(f"{name}.weight", unet_config).removesuffix(".weight")
                    table.setdefault(original.replace(".", "_"), name)
        return cls(layers)

    def find(self, name: str) -> Layer | None:
        """The layer that a file calls `name`; None if the model has no such layer."""
        plain = WRAPPER_PATTERN.sub("", name)
        for component, prefixes in PREFIXES.items():
            for prefix in prefixes:
                if plain.startswith(prefix):
                    layer = self.find_in(component, plain.removeprefix(prefix))
                    if layer is not None:
                        return layer
        return self.find_in("unet", plain)

    def find_in(self, component: str, name: str) -> Layer | None:
        """The layer of a network, by its name without the network's prefix."""
        flat = name.replace(".", "_")
        if component != "unet":
            flat = flat.removeprefix(TEXT_MODEL)
        for old, new in OLD_LAYERS.get(component.removesuffix("_2"), {}).items():
            if flat.endswith(old):
                flat = flat.removesuffix(old) + new
        known = self.layers.get(component, {}).get(flat)
        return None if known is None else Layer(component, known)


def is_unread(name: str) -> bool:
    """Whether a layer, by its name in a file, is one whose changes change nothing."""
    plain = WRAPPER_PATTERN.sub("", name)
    return any(
        plain.startswith(prefix) and plain.removeprefix(prefix).replace(".", "_").removeprefix(TEXT_MODEL) in layers
        for component, layers in UNREAD_LAYERS.items()
        for prefix in PREFIXES[component]
    )
