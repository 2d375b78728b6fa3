"""What LoRA files call the layers and tensors of a model: every entry of the list, in both directions."""

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from diffusers.utils import state_dict_utils
from official_models import OfficialModel

from minip2p.checkpoints import adapter_names
from minip2p.checkpoints.adapter_names import (
    OTHER_KINDS,
    PREFIXES,
    SUFFIXES,
    WHOLE_NETWORKS,
    WRAPPERS,
    Layer,
    other_kind,
    split_suffix,
)

PEFT = state_dict_utils.StateDictType.PEFT
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT_LAYER = "encoder.layers.1.self_attn.q_proj"
# Layers that diffusers' converter of kohya's names takes for others, which its own UNet does not have.
DIFFUSERS_MISTAKES = {
    "sd15": {"output_blocks_2_1_conv"},
    "sd21": {"output_blocks_2_1_conv"},
    "sdxl": {"add_embedding_linear_1", "add_embedding_linear_2"},
}


@pytest.fixture(scope="module")
def official():
    models = {}
    return lambda kind: models.setdefault(kind, None) or models.__setitem__(kind, OfficialModel(kind)) or models[kind]


@pytest.mark.parametrize(
    "kind, count", [("sd15", 391 + 99), ("sd21", 391 + 187), ("sdxl", 1050 + 99 + 260)], ids=["sd15", "sd21", "sdxl"]
)
def test_each_layer_of_an_official_model_is_found_by_all_of_its_names(official, kind, count):
    """Both naming schemes, with dots and with underscores, after every prefix, and never another layer's."""
    model, owners = official(kind), {}
    assert sum(map(len, model.layers.values())) == count
    for component, layers in model.layers.items():
        for layer in layers:
            schemes = {layer, model.original(layer)} if component == "unet" else {layer}
            if component != "unet":
                schemes |= {"text_model." + layer.removeprefix("text_model."), layer.removeprefix("text_model.")}
            names = {prefix + n for prefix in PREFIXES[component] for s in schemes for n in (s, s.replace(".", "_"))}
            for name in names | (schemes if component == "unet" else set()):
                assert model.names.find(name) == Layer(component, layer), name
                assert owners.setdefault(name, layer) == layer


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("scheme", ["diffusers' names", "original names"])
def test_kohyas_names_are_those_that_diffusers_converts(official, kind, scheme):
    """Its converter names the same layer, for every layer of the UNet that a LoRA changes, but for its mistakes."""
    model, mistakes = official(kind), set()
    for layer in model.matrices["unet"]:
        flat = (layer if scheme == "diffusers' names" else model.original(layer)).replace(".", "_")
        file = {f"lora_unet_{flat}.lora_{x}.weight": torch.ones(1) for x in ("down", "up")}
        assert {model.names.find(split_suffix(name)[0]) for name in file} == {Layer("unet", layer)}
        if scheme == "original names":
            file = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(file, model.config)
        converted, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(file)
        for name in state_dict_utils.convert_unet_state_dict_to_peft(converted):
            if model.names.find(split_suffix(name)[0]) != Layer("unet", layer):
                mistakes.add(flat)
    assert mistakes <= DIFFUSERS_MISTAKES[kind]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_own_export_to_kohyas_names_is_read(official, kind):
    """Every layer, by the name that `convert_state_dict_to_kohya` gives it."""
    model = official(kind)
    for component, layers in model.matrices.items():
        for layer in layers:
            stem = f"{component}.{layer if component == 'unet' else 'text_model.' + layer.removeprefix('text_model.')}"
            exported = state_dict_utils.convert_state_dict_to_kohya({f"{stem}.lora_A.weight": torch.ones(2, 2)})
            assert {split_suffix(name)[1] for name in exported} == {"down", "alpha"}
            for name in exported:
                assert model.names.find(split_suffix(name)[0]) == Layer(component, layer), name


@pytest.mark.parametrize("convert", ["convert_state_dict_to_diffusers", "convert_unet_state_dict_to_peft"])
def test_the_names_of_diffusers_own_conversions_are_read(official, convert):
    """PEFT's names and those of older versions, from one to the other: both are the same layer and the same matrix."""
    model = official("sd15")
    if convert == "convert_state_dict_to_diffusers":
        old = {f"text_encoder.text_model.{TEXT_LAYER}.lora_{x}.weight": torch.ones(1) for x in "AB"}
        old |= {f"unet.{ATTENTION}.to_out.0.lora_{x}.weight": torch.ones(1) for x in "AB"}
        old |= {f"unet.{ATTENTION}.to_q.lora_{x}.weight": torch.ones(1) for x in "AB"}
    else:
        leaves = ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora")
        old = {
            f"unet.{ATTENTION}.processor.{leaf}.{x}.weight": torch.ones(1) for leaf in leaves for x in ("down", "up")
        }
        old |= {f"unet.{ATTENTION}.to_q.lora.{x}.weight": torch.ones(1) for x in ("down", "up")}
    options = {"original_type": PEFT} if convert == "convert_state_dict_to_diffusers" else {}
    for name in old:
        (new,) = getattr(state_dict_utils, convert)({name: old[name]}, **options)
        (layer, role), (new_layer, new_role) = split_suffix(name), split_suffix(new)
        assert model.names.find(layer) == model.names.find(new_layer) is not None
        assert role == new_role and new != name


@pytest.mark.parametrize("old", list(state_dict_utils.DIFFUSERS_OLD_TO_PEFT))
def test_older_names_of_text_encoders_are_read(official, old):
    """Each entry of diffusers' table, under the layer that it belongs to."""
    new = state_dict_utils.DIFFUSERS_OLD_TO_PEFT[old]
    stem = "text_encoder.text_model.encoder.layers.1." + ("self_attn" if "_lora." in old else "mlp.fc1")
    (layer, role), (new_layer, new_role) = (split_suffix(f"{stem}{end}.weight") for end in (old, new))
    assert official("sd15").names.find(layer) == official("sd15").names.find(new_layer) is not None
    assert role == new_role


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("adapter", ["default", "default_0", "style"])
def test_each_suffix_is_split_off_and_says_what_the_tensor_is(official, suffix, adapter):
    for layer in (f"unet.{ATTENTION}.to_q", "lora_unet_" + f"{ATTENTION}.to_q".replace(".", "_")):
        assert split_suffix(layer + suffix.format(adapter=adapter)) == (layer, SUFFIXES[suffix])
        assert official("sd15").names.find(layer) == Layer("unet", f"{ATTENTION}.to_q")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "name, layer",
    [
        (f"unet.@{ATTENTION}.to_q", Layer("unet", f"{ATTENTION}.to_q")),
        (f"@unet.{ATTENTION}.to_q", Layer("unet", f"{ATTENTION}.to_q")),
        (f"@{ATTENTION}.@to_out", Layer("unet", f"{ATTENTION}.to_out.0")),
        (f"text_encoder.@text_model.{TEXT_LAYER}", Layer("text_encoder", TEXT_LAYER)),
    ],
)
def test_what_wrappers_add_to_a_name_is_removed(official, wrapper, name, layer):
    assert official("sd15").names.find(name.replace("@", wrapper)) == layer


@pytest.mark.parametrize("projection", ["lora_te2_text_projection", "text_encoder_2.text_projection"])
def test_the_projection_of_the_second_text_encoder_is_a_layer(official, projection):
    """OneTrainer and ComfyUI change it. That of the first encoder is not read, and a change of it is passed over."""
    assert official("sdxl").names.find(projection) == Layer("text_encoder_2", "text_projection")
    first = projection.replace("te2", "te1").replace("encoder_2", "encoder")
    assert official("sdxl").names.find(first) is None
    assert adapter_names.is_unread(first) and not adapter_names.is_unread(projection)


# Other kinds of files, by the names that their tools give to tensors

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
KINDS = {
    "LoHa": [f"{LAYER}.{x}" for x in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")],
    "LoKr": [
        f"{LAYER}.{x}" for x in ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    ],
    "LoCon in Tucker": [f"{LAYER}.lora_mid.weight"],
    "(IA)^3": [f"{LAYER}.on_input", "base_model.model.x.ia3_l"],
    "GLoRA": [f"{LAYER}.{x}.weight" for x in ("a1", "a2", "b1", "b2", "bm", "bm1", "bm2")],
    "a BOFT": ["base_model.model.x.boft_R", "base_model.model.x.boft_S"],
    "an OFT": [
        f"{LAYER}.oft_blocks",
        f"{LAYER}.oft_diag",
        f"{LAYER}.oft_R.weight",
        "oft_unet_x.alpha2",
        "x.oft_r.default",
    ],
    "VeRA": ["base_model.model.x.vera_lambda_b", "base_model.vera_A"],
    "T-LoRA": [f"{LAYER}.{x}" for x in ("lambda_layer", "p_layer.weight", "q_layer.weight")],
    "HRA": ["base_model.model.x.hra_u"],
    "FourierFT": ["base_model.model.x.fourierft_spectrum"],
    "LoRA of the embeddings": ["text_encoder.text_model.embeddings.token_embedding.lora_embedding_A"],
    "LoRA with biases": [f"unet.{ATTENTION}.to_q.lora_B.bias", f"unet.{ATTENTION}.to_q.lora_B.default.bias"],
    "weights that replace": ["diffusion_model.out.2.set_weight", "diffusion_model.img_in.reshape_weight"],
    "numbers instead of names": ["unet:0:up", "text_encoder:11:down"],
    "Custom Diffusion": [f"{ATTENTION}.processor.to_k_custom_diffusion.weight"],
    "IP-Adapter": ["image_proj.latents", "ip_adapter.1.to_k_ip.weight"],
    "ControlNet-LLLite": ["lllite_unet_input_blocks_4_1.depth1.0.weight"],
    "a ControlNet,": ["lora_controlnet", "control_model.zero_convs.0.0.weight", "controlnet_down_blocks.0.weight"],
    "textual-inversion": [
        "emb_params",
        "emp_params",
        "clip_l",
        "clip_g",
        "clip_l_out",
        "text_encoders_0",
        "string_to_param.*",
        "<cat-toy>",
    ],
    "a whole model": [
        "model.diffusion_model.input_blocks.0.0.weight",
        "cond_stage_model.transformer.text_model.x.weight",
    ],
    "weights of a UNet": [
        "conv_in.weight",
        "input_blocks.0.0.bias",
        "diffusion_model.input_blocks.1.0.in_layers.0.weight",
    ],
    "a VAE": ["decoder.conv_in.weight", "first_stage_model.encoder.mid.attn_1.q.weight", "quant_conv.bias"],
    "weights of a text encoder": ["text_model.embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.bias"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_other_kind_of_file_is_named(kind):
    for name in KINDS[kind]:
        assert kind in other_kind([name, f"{LAYER}.alpha"]), name


def test_each_pattern_of_another_kind_is_met_and_no_name_of_a_lora_is():
    sentences = {other_kind([name]) for names in KINDS.values() for name in names}
    assert sentences == {*OTHER_KINDS.values(), *WHOLE_NETWORKS.values()}
    names = [f"{LAYER}{suffix}".format(adapter="default") for suffix in SUFFIXES]
    assert other_kind([*names, "bundle_emb.<a b>.clip_l", "bundle_emb.x.string_to_param.*", "_aux.3f"]) is None
