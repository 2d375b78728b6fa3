"""LoRA files: what their tensors may be called, what they change, and what they leave as it is."""

import json
import re

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from families import PROMPT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import minip2p
from minip2p.checkpoints.lora import Lora
from minip2p.errors import Notice

# Layers of the UNet that the tests change -> their names in the original code.
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
ORIGINAL_BLOCK = "input_blocks.1.1.transformer_blocks.0"
LAYERS = {
    f"{BLOCK}.attn1.to_q": f"{ORIGINAL_BLOCK}.attn1.to_q",
    f"{BLOCK}.attn2.to_out.0": f"{ORIGINAL_BLOCK}.attn2.to_out.0",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "up_blocks.1.resnets.0.conv1": "output_blocks.3.0.in_layers.2",
}
TEXT_LAYER = "text_model.encoder.layers.1.self_attn.q_proj"
PROJ_IN = "mid_block.attentions.0.proj_in"


@pytest.fixture
def sd1(family):
    return minip2p.load(family("SD 1")[1])


def random_pairs(model, rank=2, seed=0):
    """Layer -> random A and B. Of a convolution with a kernel, A has the kernel."""
    g, pairs = torch.Generator().manual_seed(seed), {}
    for name in LAYERS:
        w = model.unet.get_parameter(name + ".weight")
        pairs[name] = (
            torch.randn(rank, *w.shape[1:], generator=g) * 0.1,
            torch.randn(w.shape[0], rank, *[1] * (w.ndim - 2), generator=g) * 0.1,
        )
    width = model.text.clip_encoders[0].width
    pairs[TEXT_LAYER] = torch.randn(rank, width, generator=g) * 0.1, torch.randn(width, rank, generator=g) * 0.1
    return pairs


# The same tensors in the naming schemes of trainers


def kohya(pairs, alpha=1.0, original_names=False):
    tensors = {}
    for name, (a, b) in pairs.items():
        layer = LAYERS.get(name, name) if original_names else name
        stem = ("lora_te_" if name == TEXT_LAYER else "lora_unet_") + layer.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(alpha)}
    return tensors


def peft(pairs, wrapper=""):
    tensors = {}
    for name, (a, b) in pairs.items():
        component = "text_encoder" if name == TEXT_LAYER else "unet"
        stem = f"{component}.{wrapper}{name}"
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    return tensors


def attention_processors(pairs):
    """diffusers' first naming scheme."""
    tensors = {}
    for name, (a, b) in pairs.items():
        if ".attn" in name:
            layer, leaf = name.replace(".to_out.0", ".to_out").rsplit(".", 1)
            stem = f"unet.{layer}.processor.{leaf}_lora"
        elif name == TEXT_LAYER:
            stem = f"text_encoder.{name}.lora_linear_layer"
        else:
            stem = f"unet.{name}.lora"
        tensors |= {f"{stem}.down.weight": a, f"{stem}.up.weight": b}
    return tensors


def state(model):
    """All tensors of a model by component and name."""
    networks = {"unet": model.unet, "vae": model.vae, **model.text.encoders}
    return {f"{part}.{name}": t for part, network in networks.items() for name, t in network.state_dict().items()}


def copy_state(model):
    return {name: t.clone() for name, t in state(model).items()}


def merged_by_hand(before, pairs, scale):
    """W + scale · B A."""
    after = dict(before)
    for name, (a, b) in pairs.items():
        suffix, component = name.removeprefix("text_model.") + ".weight", "text" if name == TEXT_LAYER else "unet"
        key = next(key for key in before if key.endswith(suffix) and key.startswith(component))
        after[key] = before[key] + scale * torch.einsum("or,r...->o...", b.flatten(1), a)
    return after


def test_a_lora_is_merged_on_the_device(model, cpu_model, tmp_path):
    """As on the CPU, to 1e-6 in float32."""
    save_file(peft(random_pairs(cpu_model)), tmp_path / "lora.safetensors")
    there, here = (state(pipe.merged(tmp_path / "lora.safetensors", 0.7)) for pipe in (model, cpu_model))
    assert_close({name: tensor.cpu() for name, tensor in there.items()}, here)


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6)


def changed_names(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


# What is merged


@pytest.mark.parametrize(
    "names, factor",
    [
        (lambda pairs: kohya(pairs, alpha=1.0), 0.5),
        (lambda pairs: kohya(pairs, alpha=2.0, original_names=True), 1.0),
        (peft, 1.0),
        (attention_processors, 1.0),
        (lambda pairs: peft(pairs, "base_model.model."), 1.0),
    ],
    ids=["kohya", "kohya, original names", "PEFT", "attention processors", "PEFT, wrapped"],
)
def test_the_merged_weights_are_the_formula_and_the_model_does_not_change(family, sd1, tmp_path, names, factor):
    """With the names of all trainers. kohya's α / r is 1 / 2 or 2 / 2 here. All other weights are shared."""
    model, before = sd1, copy_state(sd1)
    pairs = random_pairs(model)
    save_file(names(pairs), tmp_path / "a.safetensors")
    fingerprint, run = model.components.fingerprint, model.generate(PROMPT, steps=2)
    merged = model.merged(tmp_path / "a.safetensors", 0.7)
    after, original = state(merged), state(model)
    changed = changed_names(before, after)
    assert len(changed) == len(pairs)
    assert_close(after, merged_by_hand(before, pairs, 0.7 * factor))
    assert merged.components.fingerprint != fingerprint
    assert not torch.equal(merged.generate(PROMPT, steps=2).latents, run.latents)
    assert all(tensor.data_ptr() == original[name].data_ptr() for name, tensor in after.items() if name not in changed)
    assert not changed_names(before, original)
    assert fingerprint == minip2p.load(family("SD 1")[1]).components.fingerprint
    assert torch.equal(model.generate(PROMPT, steps=2).latents, run.latents)


def test_two_files_add_up(sd1, tmp_path):
    before = copy_state(sd1)
    a, b = random_pairs(sd1, seed=1), random_pairs(sd1, rank=3, seed=2)
    save_file(peft(a), tmp_path / "a.safetensors")
    save_file(peft(b), tmp_path / "b.safetensors")
    merged = sd1.merged(tmp_path / "a.safetensors", 1.0).merged(tmp_path / "b.safetensors", -0.5)
    assert_close(state(merged), merged_by_hand(merged_by_hand(before, a, 1.0), b, -0.5))
    assert merged.origin.labels == sd1.origin.labels | {"LoRA": "a.safetensors at 1, b.safetensors at -0.5"}


def test_both_text_encoders_of_sdxl_can_be_changed(family, tmp_path):
    model = minip2p.load(family("SDXL")[1])
    a, b = torch.randn(2, 128) * 0.1, torch.randn(128, 2) * 0.1
    for prefix, component, down, up in (
        ("lora_te2_", "text_encoder_2", a, b),
        ("lora_te1_", "text_encoder", a[:, :64], b[:64]),
    ):
        stem = prefix + TEXT_LAYER.replace(".", "_")
        tensors = {f"{stem}.lora_down.weight": down.contiguous(), f"{stem}.lora_up.weight": up.contiguous()}
        save_file(tensors, tmp_path / "a.safetensors")
        (changed,) = changed_names(state(model), state(model.merged(tmp_path / "a.safetensors")))
        assert changed.startswith(f"{component}.") and changed.endswith("encoder.layers.1.self_attn.q_proj.weight")


def test_the_sum_is_rounded_to_16_bits_once(family, tmp_path):
    model = minip2p.load(family("SD 1")[1], dtype=torch.bfloat16)
    pairs = random_pairs(model)
    save_file(peft(pairs), tmp_path / "a.safetensors")
    before = model.unet.get_parameter(PROJ_IN + ".weight").clone()
    a, b = pairs[PROJ_IN]
    expected = (before.float() + torch.einsum("or,r...->o...", b.flatten(1), a)).bfloat16()
    merged = model.merged(tmp_path / "a.safetensors")
    assert torch.equal(merged.unet.get_parameter(PROJ_IN + ".weight"), expected)


def test_everything_else_of_the_model_stays(family, tmp_path):
    """Its default guidance, its buffers, and that no weight requires a gradient. Also names without "unet."."""
    model = minip2p.load(family("SDXL Turbo")[1])
    a, b = torch.randn(2, 128) * 0.1, torch.randn(128, 2) * 0.1
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for file, prefix in (("a", "diffusion_model."), ("b", "")):
        tensors = {f"{prefix}{layer}.lora_A.weight": a, f"{prefix}{layer}.lora_B.weight": b}
        save_file(tensors, tmp_path / f"{file}.safetensors")
    merged = model.merged(tmp_path / "a.safetensors")
    assert merged.default_guidance == 1.0 and merged.text.zero_empty_prompt and not merged.unet.training
    assert not any(p.requires_grad for p in merged.unet.parameters())
    before, after = (m.unet.get_parameter(layer + ".weight") for m in (model, merged))
    torch.testing.assert_close(after, before + b @ a)
    assert model.merged(tmp_path / "b.safetensors").components.fingerprint == merged.components.fingerprint


def test_a_run_belongs_to_the_weights_that_made_it(sd1, tmp_path):
    """The merged model refuses the runs of the original one, which edits them as before."""
    save_file(peft(random_pairs(sd1)), tmp_path / "a.safetensors")
    run = sd1.generate(PROMPT, steps=2)
    before = sd1.edit(run, "a dog on the beach").latents
    merged = sd1.merged(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is another model's: edit it with the model that made it"):
        merged.edit(run, "a dog on the beach")
    run.save(tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="another model"):
        merged.open(tmp_path / "run.safetensors")
    assert torch.equal(sd1.edit(run, "a dog on the beach").latents, before)


def test_a_merged_model_is_saved_with_its_merged_weights(sd1, tmp_path):
    save_file(peft(random_pairs(sd1)), tmp_path / "a.safetensors")
    merged = sd1.merged(tmp_path / "a.safetensors", 0.5)
    merged.save(tmp_path / "merged")
    assert not changed_names(state(merged), state(minip2p.load(tmp_path / "merged")))


# α in PEFT's settings


@pytest.mark.parametrize(
    "settings, factor",
    [
        ({"unet.lora_alpha": 16, "unet.r": 2}, 8.0),
        ({"unet.lora_alpha": 16, "unet.use_rslora": True}, 16 / 2**0.5),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"mid_block.attentions.0.proj_in": 6}}, 3.0),
        ({}, 1.0),
        ({"text_encoder.lora_alpha": 16}, 1.0),
        # The first pattern that matches the name or the end of it after a dot, as in PEFT; a dot matches anything.
        ({"unet.alpha_pattern": {"attentions.0.proj_in": 6, "proj_in": 10}, "unet.lora_alpha": 4}, 3.0),
        ({"unet.alpha_pattern": {"oj_in": 6, "mid|to_k": 8, "mid_block": 8}, "unet.lora_alpha": 4}, 2.0),
        ({"unet.alpha_pattern": {"to_k|proj_(in|out)": 6}}, 3.0),
    ],
)
def test_pefts_settings_in_the_metadata_are_obeyed(sd1, tmp_path, settings, factor):
    """α / r, or α / √r if they ask for it, and patterns of names with an α of their own."""
    pairs = {PROJ_IN: random_pairs(sd1)[PROJ_IN]}
    save_file(peft(pairs), tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    expected = merged_by_hand(copy_state(sd1), pairs, factor)
    assert_close(state(sd1.merged(tmp_path / "a.safetensors")), expected)


@pytest.mark.parametrize(
    "layer, wrapper, settings",
    [
        (PROJ_IN, "", {"lora_alpha": 16, "r": 2}),
        (TEXT_LAYER, "text_encoder.", {"lora_alpha": 1, "alpha_pattern": {TEXT_LAYER: 16}}),
    ],
    ids=["unet", "text encoder"],
)
def test_pefts_settings_in_a_file_of_their_own_are_obeyed(sd1, tmp_path, layer, wrapper, settings):
    """As PeftModel.save_pretrained writes an adapter; a text encoder's patterns have the names of transformers 4."""
    a, b = random_pairs(sd1)[layer]
    stem = f"{wrapper}base_model.model.{layer}"
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    merged = sd1.merged(tmp_path / "adapter_model.safetensors")
    assert_close(state(merged), merged_by_hand(state(sd1), {layer: (a, b)}, 8.0))


@pytest.mark.parametrize(
    "settings, message",
    [
        ('{"unet.use_dora": true}', "is a DoRA by its settings, but has no magnitudes for"),
        ("[", "is not a JSON object"),
        ("3", "is not a JSON object"),
        ('{"unet.lora_alpha": "much"}', "is 'much', which is not a number"),
        ('{"unet.alpha_pattern": {"(": 4}}', "is not a pattern of names"),
        ('{"unet.alpha_pattern": ["x"]}', "which is not a mapping"),
    ],
)
def test_settings_that_cannot_be_honoured_are_one_clear_line(sd1, tmp_path, settings, message):
    save_file(peft(random_pairs(sd1)), tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(ValueError, match=message) as error:
        sd1.merged(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)


# Files that do not fit


def add(name, *shape):
    return lambda tensors: tensors.update({name: torch.ones(shape)})


def change_first(function):
    def change(tensors):
        name = next(iter(tensors))
        tensors[name] = function(tensors[name])

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (
            add("lora_unet_nowhere.lora_up.weight", 1, 1),
            "changes lora_unet_nowhere, which this model does not have: it is a LoRA of another kind of model",
        ),
        (add("lora_unet_conv_in.hada_w1_a", 1, 1), "is a LoHa .* which minip2p does not merge"),
        (add("lora_unet_conv_in.what", 1, 1), "lora_unet_conv_in.what is not a tensor of a LoRA"),
        (
            lambda tensors: tensors.pop(next(name for name in tensors if name.endswith("lora_up.weight"))),
            "of the two matrices for .* only one is in the file",
        ),
        (change_first(lambda tensor: torch.ones(2, 3)), "which its matrices of shapes .* do not fit"),
        (change_first(lambda tensor: torch.ones(())), r"which its matrices of shapes .* and \(\) do not fit"),
        (
            add(f"lora_unet_{PROJ_IN.replace('.', '_')}.diff", 1, 1),
            f"has both a low-rank update and a difference for unet.{PROJ_IN}.weight",
        ),
        (change_first(lambda tensor: tensor * torch.nan), "is not finite"),
        (lambda tensors: tensors.clear(), "has no tensors in it"),
    ],
    ids="unknown layer,another method,unknown tensor,one matrix,wrong shape,a number,both kinds,NaN,empty".split(","),
)
def test_a_file_that_does_not_fit_is_one_clear_line_and_changes_nothing(sd1, tmp_path, change, message):
    tensors, before = kohya(random_pairs(sd1)), copy_state(sd1)
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        sd1.merged(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)
    assert not changed_names(before, state(sd1))


def test_a_model_is_not_a_lora(family, sd1):
    with pytest.raises(ValueError, match="is a whole model, not a LoRA: give it with --model"):
        sd1.merged(family("SD 1")[2])
    with pytest.raises(ValueError, match="is the weights of a UNet, not a LoRA"):
        sd1.merged(family("SD 1")[1] / "unet/diffusion_pytorch_model.safetensors")


def test_a_missing_file_is_missing(sd1, tmp_path):
    for where in (tmp_path / "nowhere.safetensors", str(tmp_path / "nowhere.safetensors"), "nowhere/x.safetensors"):
        with pytest.raises(FileNotFoundError, match="nowhere.*: no such file: there is no LoRA of this name"):
            sd1.merged(where)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer"),
        ("a.safetensors", b"\n<!DOCTYPE html><html>", "is an HTML page"),
        ("a.safetensors", b"PK\x03\x04archive/data.pkl", "is a pickle, which can run any program"),
        ("a.pt", b"\x80\x02}q", "is a pickle, which can run any program when it is opened"),
        ("a.bin", b"anything", "is a pickle"),
        ("a.ckpt", b"anything", "is a pickle"),
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
    ],
)
def test_a_file_of_another_format_is_named_and_never_unpickled(sd1, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for where in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(ValueError, match=message) as error:
            sd1.merged(where)
        assert name in str(error.value) and "\n" not in str(error.value)


# Folders


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "adapter_model.safetensors", "style.safetensors"])
def test_a_folder_is_read_as_its_file(sd1, tmp_path, name):
    """Of diffusers, of PEFT, or with a single safetensors file. PEFT's settings in it count."""
    pairs = {PROJ_IN: random_pairs(sd1)[PROJ_IN]}
    save_file({n.removeprefix("unet."): t for n, t in peft(pairs).items()}, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 16, "r": 2}))
    merged = sd1.merged(str(tmp_path))
    factor = 8.0 if name == "adapter_model.safetensors" else 1.0
    assert_close(state(merged), merged_by_hand(state(sd1), pairs, factor))
    assert merged.origin.labels["LoRA"] == f"{name} at 1"


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "has no LoRA in it: no file ends in .safetensors"),
        (["pytorch_lora_weights.bin"], "has only pickled files .pytorch_lora_weights.bin., which are never read"),
        (
            ["a.safetensors", "b.safetensors"],
            "has 2 safetensors files, a.safetensors, b.safetensors, .*: give the file",
        ),
    ],
)
def test_a_folder_without_a_clear_file_is_one_clear_line(sd1, tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message) as error:
        sd1.merged(tmp_path)
    assert "\n" not in str(error.value)


def write_peft_part(folder, layer, matrices, alpha):
    """The adapter of one network, as PeftModel.save_pretrained writes it into a folder of its own."""
    folder.mkdir(parents=True)
    tensors = {f"base_model.model.{layer}.lora_{x}.weight": t for x, t in zip("AB", matrices, strict=True)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": alpha, "r": 2}))


def test_pefts_folders_of_each_network_are_one_lora(sd1, tmp_path):
    """With the settings of each, and without the names of the networks in the files; a folder may be given alone."""
    pairs = random_pairs(sd1)
    unet, text = {PROJ_IN: pairs[PROJ_IN]}, {TEXT_LAYER: pairs[TEXT_LAYER]}
    write_peft_part(tmp_path / "unet", PROJ_IN, pairs[PROJ_IN], alpha=4)
    write_peft_part(tmp_path / "text_encoder", TEXT_LAYER, pairs[TEXT_LAYER], alpha=16)
    both = merged_by_hand(merged_by_hand(state(sd1), unet, 2.0), text, 8.0)
    assert_close(state(sd1.merged(str(tmp_path))), both)
    assert_close(state(sd1.merged(tmp_path / "unet")), merged_by_hand(state(sd1), unet, 2.0))
    for where in (tmp_path / "text_encoder", tmp_path / "text_encoder/adapter_model.safetensors"):
        assert_close(state(sd1.merged(where)), merged_by_hand(state(sd1), text, 8.0))
    (tmp_path / "text_encoder/adapter_model.safetensors").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="text_encoder/adapter_model.safetensors: is an HTML page"):
        sd1.merged(tmp_path)


def test_a_peft_folder_says_which_text_encoder_of_sdxl_it_changes(family, tmp_path):
    """The names in it are the same for both."""
    pipe = minip2p.load(family("SDXL")[1])
    width = pipe.text.clip_encoders[1].width
    matrices = torch.ones(2, width), torch.ones(width, 2)
    write_peft_part(tmp_path / "text_encoder_2", TEXT_LAYER, matrices, alpha=2)
    (name,) = Lora.read(tmp_path, pipe.components).updates
    assert name.component == "text_encoder_2" and name.name == f"{TEXT_LAYER}.weight"


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA"])
def test_pefts_other_kinds_are_named(sd1, tmp_path, kind):
    save_file({"base_model.model.x.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(ValueError, match=f"is of PEFT's kind {kind}, which minip2p does not merge"):
        sd1.merged(tmp_path)


# α, DoRA, full differences, embeddings


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float16, torch.float64])
def test_alpha_may_be_an_integer(sd1, tmp_path, dtype):
    """diffusers' conversion to kohya's names writes int64."""
    pairs = random_pairs(sd1)
    tensors = {n: t.to(dtype) if n.endswith("alpha") else t for n, t in kohya(pairs, alpha=4.0).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert_close(state(sd1.merged(tmp_path / "a.safetensors")), merged_by_hand(copy_state(sd1), pairs, 2.0))


def test_diffusers_own_export_to_kohyas_names_is_merged(sd1, tmp_path):
    """With its α = r, an int64."""
    pairs = random_pairs(sd1)
    exported = convert_state_dict_to_kohya(peft(pairs))
    assert {t.dtype for n, t in exported.items() if n.endswith("alpha")} == {torch.int64}
    save_file(exported, tmp_path / "a.safetensors")
    assert_close(state(sd1.merged(tmp_path / "a.safetensors")), merged_by_hand(copy_state(sd1), pairs, 1.0))


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["PEFT", "of outputs", "of inputs"])
def test_a_dora_is_the_direction_of_the_sum_times_the_magnitudes(sd1, tmp_path, kind, scale):
    """W' = m V / ‖V‖ of V = W + α / r · B A (Liu et al. 2024, equation 5), with the shapes of PEFT and of LyCORIS."""
    before, pairs = copy_state(sd1), random_pairs(sd1)
    tensors, expected = kohya(pairs, alpha=4.0), merged_by_hand(copy_state(sd1), pairs, 2.0)
    g = torch.Generator().manual_seed(3)
    for name in pairs:
        suffix, component = name.removeprefix("text_model.") + ".weight", "text" if name == TEXT_LAYER else "unet"
        key = next(key for key in before if key.endswith(suffix) and key.startswith(component))
        v, stem = expected[key], next(n for n in tensors if name.replace(".", "_") in n).split(".")[0]
        axis = 1 if kind == "of inputs" else 0
        norm = v.pow(2).sum([d for d in range(v.ndim) if d != axis], keepdim=True).sqrt()
        m = norm * (0.5 + torch.rand(norm.shape, generator=g))
        expected[key] = before[key] + scale * (m * v / norm - before[key])
        if kind == "PEFT":
            tensors[f"{stem}.lora_magnitude_vector.weight"] = m.flatten() if m.ndim == 2 else m.transpose(0, 1)
        else:
            tensors[f"{stem}.dora_scale"] = m
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "a.safetensors")
    assert_close(state(sd1.merged(tmp_path / "a.safetensors", scale)), expected)


def test_magnitudes_of_another_size_are_refused(sd1, tmp_path):
    tensors = kohya({PROJ_IN: random_pairs(sd1)[PROJ_IN]})
    stem = next(iter(tensors)).split(".")[0]
    save_file(tensors | {f"{stem}.dora_scale": torch.ones(3, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"magnitudes \(DoRA\) of shape \(3, 1\) do not fit"):
        sd1.merged(tmp_path / "a.safetensors")


def test_full_differences_of_weights_biases_and_norms_are_added(sd1, tmp_path):
    """LyCORIS' and ComfyUI's names; LyCORIS writes an α besides, which changes nothing."""
    before, g = copy_state(sd1), torch.Generator().manual_seed(0)
    changes = {
        "lora_unet_conv_in.diff": "unet.conv_in.weight",
        "lora_unet_conv_in.diff_b": "unet.conv_in.bias",
        "diffusion_model.out.0.diff": "unet.conv_norm_out.weight",
        "lora_unet_mid_block_attentions_0_norm.w_norm": "unet.mid_block.attentions.0.norm.weight",
        "lora_unet_mid_block_attentions_0_norm.b_norm": "unet.mid_block.attentions.0.norm.bias",
    }
    tensors = {name: torch.randn(before[key].shape, generator=g) for name, key in changes.items()}
    save_file(tensors | {"lora_unet_conv_in.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    after = state(sd1.merged(tmp_path / "a.safetensors", 0.5))
    expected = before | {key: before[key] + 0.5 * tensors[name] for name, key in changes.items()}
    assert changed_names(before, after) == set(changes.values())
    assert_close(after, expected)
    shape = tuple(before["unet.conv_in.weight"].shape)
    for wrong in ((3,), (shape[1], shape[0], *shape[2:])):  # also of as many numbers, with the axes exchanged
        save_file({"lora_unet_conv_in.diff": torch.ones(wrong)}, tmp_path / "b.safetensors")
        with pytest.raises(ValueError, match=rf"which a difference of shape {re.escape(str(wrong))} does not fit"):
            sd1.merged(tmp_path / "b.safetensors")
    query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{query}.diff_b": torch.ones(64)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="but this model has no bias there"):
        sd1.merged(tmp_path / "c.safetensors")


def test_bundled_embeddings_become_words(sd1, tmp_path):
    """OneTrainer's and A1111's, beside a LoRA. A word that the tokenizer knows already is passed over aloud."""
    pairs, vectors = random_pairs(sd1), torch.randn(2, 64)
    save_file(
        kohya(pairs) | {"bundle_emb.<toy>.clip_l": vectors, "bundle_emb.sks™.string_to_param.*": vectors[0].clone()},
        tmp_path / "a.safetensors",
    )
    merged = sd1.merged(tmp_path / "a.safetensors")
    assert merged.text.prompt("a <toy> sks™").token_indices("toy") == (2, 3)
    assert len(merged.text.tokenizer) == len(sd1.text.tokenizer) + 3
    matrices = {name: t for name, t in state(merged).items() if "token_embedding" not in name}
    by_hand = merged_by_hand(copy_state(sd1), pairs, 0.5)
    assert_close(matrices, {name: t for name, t in by_hand.items() if "token_embedding" not in name})
    with pytest.warns(Notice, match="<toy> is already in the tokenizer's vocabulary.*; the LoRA is merged without it"):
        merged.merged(tmp_path / "a.safetensors")


def test_a_lora_of_another_family_says_what_it_is_for(sd1, tmp_path):
    name = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{name}.lora_up.weight": torch.ones(1, 1), f"{name}.lora_down.weight": torch.ones(1, 1)}
    for field, kind in (
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
        ("ss_base_model_version", "sdxl_base_v1-0"),
    ):
        save_file(tensors, tmp_path / "a.safetensors", {field: kind})
        with pytest.raises(ValueError, match=rf"is a LoRA of another kind of model \({kind}\)"):
            sd1.merged(tmp_path / "a.safetensors")


def test_the_second_text_projection_can_be_changed(family, tmp_path):
    model = minip2p.load(family("SDXL")[1])
    stem = "lora_te2_text_projection"
    tensors = {f"{stem}.lora_down.weight": torch.randn(2, 128), f"{stem}.lora_up.weight": torch.randn(128, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    changed = changed_names(state(model), state(model.merged(tmp_path / "a.safetensors")))
    assert changed == {"text_encoder_2.text_projection.weight"}


def test_a_scale_must_be_a_finite_number(sd1, tmp_path):
    save_file(peft(random_pairs(sd1)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="the scale of a LoRA must be a finite number, not nan"):
        sd1.merged(tmp_path / "a.safetensors", float("nan"))


def test_a_layer_under_two_names_and_an_alpha_of_two_numbers_are_refused(sd1, tmp_path):
    pairs = random_pairs(sd1)
    save_file(peft(pairs) | {name: t.clone() for name, t in kohya(pairs).items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is in the file under another name as well"):
        sd1.merged(tmp_path / "a.safetensors")
    save_file(kohya(pairs, alpha=[1.0, 2.0]), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b.safetensors: the alpha of .* is not a single number"):
        sd1.merged(tmp_path / "b.safetensors")


def test_damaged_weights_are_not_blamed_on_the_lora(family, tmp_path):
    pipe = minip2p.load(family("SD 1")[1])
    pipe.unet.get_parameter(f"{PROJ_IN}.weight").view(-1)[0] = torch.inf
    save_file(kohya({PROJ_IN: random_pairs(pipe)[PROJ_IN]}), tmp_path / "a.safetensors")
    assert not state(pipe.merged(tmp_path / "a.safetensors"))[f"unet.{PROJ_IN}.weight"].isfinite().all()


def test_an_overflow_names_the_lora(family, tmp_path):
    model = minip2p.load(family("SD 1")[1], dtype=torch.float16)
    save_file(peft(random_pairs(model)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: at a scale of 1e\+07, .* is too large for torch.float16"):
        model.merged(tmp_path / "a.safetensors", 1e7)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_is_read_completely_or_is_one_clear_line(model, tmp_path, changes):
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = model.unet.config.block_out_channels[-1]
    path = tmp_path / "lora.safetensors"
    save_file({f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}, path)
    content = bytearray(path.read_bytes())
    for position, byte in changes:
        content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        lora = Lora.read(path, model.components)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert len(lora.updates) == 1
