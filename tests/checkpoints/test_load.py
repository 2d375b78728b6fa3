"""What a folder may hold and may not: strictness, memory, former names; and that diffusers reads ours as we do."""

import json
import pickle
import struct
import sys
from dataclasses import asdict
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from parity import SD15_UNET, SD15_VAE, check, on_meta
from safetensors.torch import load_file, save_file
from torch import nn

import minip2p
from minip2p.checkpoints.strict import LEGACY_VAE_KEYS, load_module, upgrade_key
from minip2p.config import SamplingDefaults, SchedulerConfig, UNetConfig, VAEConfig
from minip2p.io.files import read_json
from minip2p.unet import UNet
from minip2p.vae import VAE

SD15_SCHEDULER = dict(
    _class_name="PNDMScheduler",
    _diffusers_version="0.6.0",
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    clip_sample=False,
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
)


class Small(nn.Module):
    """A module with a parameter of each kind of name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.GroupNorm(1, 3)])


def tensors(module=None):
    return {name: torch.randn(p.shape) for name, p in (module or Small()).state_dict().items()}


def load_small(path, dtype=torch.float32):
    return load_module(Small, path, dtype=dtype)


def header(lies):
    """A safetensors file whose header tells lies about what follows."""
    text = json.dumps(lies).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 16


# Weights, strictly


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.pop("conv.weight"), "conv.weight is missing"),
        (lambda t: t.update({"extra.bias": torch.ones(3)}), "extra.bias is not a tensor of this model"),
        (lambda t: t.update({"conv.bias": torch.ones(4)}), r"conv.bias has shape \(4,\) where the config says \(3,\)"),
        (lambda t: t.update({"conv.weight": torch.ones(3, 2)}), r"shape \(3, 2\) where the config says \(3, 2, 1, 1\)"),
        (lambda t: t.clear(), "conv.weight is missing; .*; and 3 more"),
    ],
    ids=["missing", "unknown", "mis-shaped", "of less axes", "none"],
)
def test_names_and_shapes_must_match_both_ways(tmp_path, change, says):
    held = tensors()
    change(held)
    save_file(held, tmp_path / "weights")
    with pytest.raises(ValueError, match=says) as error:
        load_small(tmp_path / "weights")
    assert str(error.value).startswith(f"{tmp_path / 'weights'}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 8,
        b"\xff" * 64,
        pickle.dumps({"conv.weight": [1.0]}),
        b"<!doctype html><p>404",
        b'{"a": 1}',
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 99) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
        header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}),
        header({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}),
    ],
    ids=[
        "empty",
        "one byte",
        "zeros",
        "ones",
        "a pickle",
        "a web page",
        "json",
        "a huge header",
        "a cut header",
        "a list",
        "past the end",
        "too few bytes",
        "bytes left over",
        "an unknown type",
        "backwards",
    ],
)
def test_what_is_not_safetensors_is_one_clear_line(tmp_path, content):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file") as error:
        load_small(tmp_path / "weights")
    assert str(error.value).startswith(f"{tmp_path / 'weights'}: ") and "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_one_clear_line(tmp_path):
    save_file(tensors(), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for size in (*range(0, len(whole), 37), len(whole) - 1):
        (tmp_path / "weights").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_small(tmp_path / "weights")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "unet" / "weights", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file; is .* a diffusers model folder") as error:
            load_small(path)
        assert str(error.value).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(path, framework):
        raise PermissionError("Permission denied")

    save_file(tensors(), tmp_path / "weights")
    monkeypatch.setattr("minip2p.checkpoints.strict.safe_open", refuse)
    with pytest.raises(ValueError, match=r"weights: not a whole safetensors file \(Permission denied\)"):
        load_small(tmp_path / "weights")


# Weights, placed


def test_a_loaded_module_has_the_files_numbers_and_is_ready_to_use(tmp_path):
    held = tensors()
    save_file(held, tmp_path / "weights")
    module = load_small(tmp_path / "weights")
    assert all(torch.equal(p, held[name]) for name, p in module.state_dict().items())
    assert not module.training and not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_is_converted(tmp_path, dtype):
    held = tensors()
    save_file({name: t.half() for name, t in held.items()}, tmp_path / "weights")
    for name, p in load_small(tmp_path / "weights", dtype).state_dict().items():
        assert p.dtype == dtype and torch.equal(p, held[name].half().to(dtype))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_of_the_dtype_asked_for_stay_in_the_files_own_memory(tmp_path):
    save_file(tensors(), tmp_path / "weights")
    before = (tmp_path / "weights").read_bytes()

    def mapped(module):
        """For each parameter, whether its address lies in a mapping of the file."""
        spans = [
            line.split()[0].split("-")
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(str(tmp_path / "weights"))
        ]
        spans = [(int(low, 16), int(high, 16)) for low, high in spans]
        return [any(low <= p.data_ptr() < high for low, high in spans) for p in module.parameters()]

    module = load_small(tmp_path / "weights")
    assert all(mapped(module))
    assert not any(mapped(load_small(tmp_path / "weights", torch.float16)))
    module.conv.weight.zero_()  # a copy on write: the file is never changed
    assert (tmp_path / "weights").read_bytes() == before


def test_nothing_is_left_on_the_meta_device(model):
    for part in (model.unet, model.vae, *model.text.encoders.values()):
        assert {t.device.type for t in (*part.parameters(), *part.buffers())} == {"cpu"}


def test_the_vaes_four_former_names_are_accepted(tmp_path):
    config = VAEConfig(block_out_channels=(8,), norm_num_groups=4)
    held = tensors(on_meta(VAE, config))

    def former(name):
        if "attentions" in name:
            for old, new in LEGACY_VAE_KEYS:
                name = name.replace(f".{new}.", f".{old}.")
        return name

    old = {former(name): t for name, t in held.items()}
    renamed = set(old) - set(held)
    assert len(renamed) == 2 * 4 * 2 and {name.split(".")[-2] for name in renamed} == {n for n, _ in LEGACY_VAE_KEYS}
    save_file(old, tmp_path / "weights")
    vae = load_module(lambda: VAE(config), tmp_path / "weights", dtype=torch.float32)
    assert all(torch.equal(p, held[name]) for name, p in vae.state_dict().items())
    assert upgrade_key("encoder.key.weight") == "encoder.key.weight"  # a former name only within an attention


# Configurations


def test_diffusers_own_configurations_are_read_whole():
    theirs = on_meta(UNet2DConditionModel, **SD15_UNET)
    assert UNetConfig.from_dict(dict(theirs.config)) == UNetConfig.from_dict(SD15_UNET)
    assert (
        UNetConfig.from_dict(SD15_UNET).cross_attention_dim == 768 and UNetConfig.from_dict(SD15_UNET).sample_size == 64
    )
    assert VAEConfig.from_dict(dict(on_meta(AutoencoderKL, **SD15_VAE).config)) == VAEConfig.from_dict(SD15_VAE)
    read = SchedulerConfig.from_dict(SD15_SCHEDULER)
    assert read == SchedulerConfig.from_dict(dict(DDIMScheduler.from_config(SD15_SCHEDULER).config))
    assert (read.beta_start, read.beta_end, read.steps_offset, read.set_alpha_to_one) == (0.00085, 0.012, 1, False)


def test_defaults_are_diffusers():
    for ours, theirs, unlike in (
        (UNetConfig, UNet2DConditionModel, {}),
        (VAEConfig, AutoencoderKL, {}),
        # Its own default clips, which no latent model does; a folder that says nothing is not clipped.
        (SchedulerConfig, DDIMScheduler, {"clip_sample": False}),
    ):
        default = on_meta(theirs)
        assert ours.of(dict(default.config) | unlike) == ours()
        assert set(asdict(ours())) <= set(default.config)


@pytest.mark.parametrize(
    "of, given, says",
    [
        (UNetConfig, {"frobnicate": 3}, "frobnicate = 3 is not a field that minip2p knows"),
        (UNetConfig, {"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not a field"),
        (UNetConfig, {"act_fn": "gelu"}, "act_fn = 'gelu' is not supported, only 'silu' is"),
        (UNetConfig, {"mid_block_type": None}, "mid_block_type = None is not supported"),
        (UNetConfig, {"resnet_time_scale_shift": "scale_shift"}, "only 'default' is"),
        (VAEConfig, {"mid_block_add_attention": False}, "mid_block_add_attention = False is not supported"),
        (VAEConfig, {"latents_std": [1, 2, 3, 4]}, "latents_std = .* is not a field"),
        (SchedulerConfig, {"clip_sample": True}, "clip_sample = True is not supported, only False is"),
        (SchedulerConfig, {"thresholding": True}, "thresholding = True is not supported"),
        (SchedulerConfig, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True is not supported"),
        (SchedulerConfig, {"trained_betas": [0.1]}, "trained_betas = .* is not supported, only None is"),
        (UNetConfig, {"layers_per_block": 10**6}, "there are more than 100 levels, or layers in a block"),
        (VAEConfig, {"layers_per_block": 10**6}, "there are more than 100 levels, or layers in a block"),
        (UNetConfig, {"sample_size": 10**5}, "sample_size is more than 1024 latents a side"),
        (SchedulerConfig, {"prediction_type": "sample"}, "'sample' is not one of epsilon, v_prediction"),
        (SchedulerConfig, {"beta_schedule": "squaredcos_cap_v2"}, "is not one of linear, scaled_linear"),
        (SchedulerConfig, {"timestep_spacing": "random"}, "is not one of leading, trailing, linspace"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_an_error(tmp_path, of, given, says):
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=says) as error:
        of.read(tmp_path / "config.json")
    assert "\n" not in str(error.value)


def test_a_field_that_changes_nothing_is_no_error():
    for of, given in (
        (
            UNetConfig,
            {"addition_embed_type_num_heads": 64, "_any": 3, "num_class_embeds": None},
        ),
        (VAEConfig, {"sample_size": 512, "force_upcast": True, "latents_mean": None}),
        (SchedulerConfig, {"clip_sample_range": 1.0, "final_sigmas_type": "zero", "skip_prk_steps": True}),
    ):
        assert of.of(given) == of()


def test_json_that_is_none_is_one_clear_line(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_json(path)
    for content, says in (
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"[1]", "found list"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 200_000, "cannot be read as JSON"),
        (b'{"a": ' + b"1" * 6000 + b"}", "cannot be read as JSON"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says) as error:
            read_json(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


# Folders


@pytest.fixture
def folder(tmp_path, model):
    """The embedded model, each of whose files may be replaced: nothing is copied."""
    for file in model.text.folder.rglob("*"):
        if file.is_file():
            link = tmp_path / file.relative_to(model.text.folder)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file)
    return tmp_path


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def change(path, **fields):
    replace(path, json.dumps(json.loads(path.read_bytes()) | fields).encode())


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_load_names_the_broken_file(folder, part):
    weights, config = folder / part / "diffusion_pytorch_model.safetensors", folder / part / "config.json"
    own, fields = weights.resolve(), json.loads(config.read_bytes())
    held = load_file(own)
    name = next(name for name in held if held[name].ndim == 4)
    cut, less, other = folder / "cut", folder / "less", folder / "other"
    cut.write_bytes(own.read_bytes()[:-1])
    save_file({n: t for n, t in held.items() if n != name}, less)
    save_file(held | {name: held[name][:1].clone()}, other)
    for broken, says in ((cut, "not a whole safetensors"), (less, f"{name} is missing"), (other, f"{name} has shape")):
        weights.unlink()
        weights.symlink_to(broken)
        with pytest.raises(ValueError, match=says) as error:
            minip2p.load(folder)
        assert str(error.value).startswith(str(weights)) and "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        minip2p.load(folder)
    weights.symlink_to(own)
    change(config, in_channels=fields["in_channels"] + 1)
    with pytest.raises(ValueError, match=r"conv_in.weight has shape .* where the config says"):
        minip2p.load(folder)


def test_load_names_what_else_is_wrong(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; a model is a folder with unet/, vae/"):
        minip2p.load(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json: no such file; is .* a diffusers model folder"):
        minip2p.load(tmp_path_factory.mktemp("empty"))
    change(folder / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type 'sample' is not one of"):
        minip2p.load(folder)
    change(folder / "scheduler/scheduler_config.json", prediction_type="epsilon")
    change(folder / "unet/config.json", cross_attention_dim=5)
    with pytest.raises(ValueError, match="the text encoder is .* wide, the UNet reads 5"):
        minip2p.load(folder)


def test_networks_must_agree_in_their_channels(folder, tmp_path):
    """As of a UNet, whole in itself, that reads more channels than a picture and a mask have beside the latents."""
    fields = json.loads((folder / "unet/config.json").read_text())
    wider = UNet(UNetConfig.from_dict(fields | {"in_channels": 10}))
    change(folder / "unet/config.json", in_channels=10)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    save_file(wider.state_dict(), weights)
    with pytest.raises(ValueError, match="the UNet reads 10 channels and predicts 4, where the VAE's latents have 4"):
        minip2p.load(folder)


def test_a_folder_may_say_its_guidance_or_nothing(folder, model):
    assert minip2p.load(folder).guidance_scale == model.guidance_scale
    change(folder / "minip2p.json", guidance=3.25)
    assert minip2p.load(str(folder)).guidance_scale == 3.25
    (folder / "minip2p.json").unlink()
    assert minip2p.load(folder).guidance_scale == 7.5


def test_a_model_is_of_the_dtype_asked_for(model):
    half = minip2p.load(dtype=torch.bfloat16)
    assert model.dtype == torch.float32 and half.dtype == half.vae.encoder.conv_in.weight.dtype == torch.bfloat16
    run = half.generate("a cat", steps=2, size=(64, 64))
    assert run.latents.dtype == torch.float32 and run.image.size == (64, 64)
    same = model.generate("a cat", steps=2, size=(64, 64)).latents
    assert (run.latents - same).std() < 0.1 * same.std()


# The whole, against diffusers


@pytest.mark.parametrize("steps, size", [(50, (128, 128)), (20, (128, 160))])
def test_diffusers_pipeline_opens_our_folder_and_ends_where_we_do(model, steps, size):
    diffusers.utils.logging.disable_progress_bar()
    pipe = StableDiffusionPipeline.from_pretrained(model.text.folder)  # no dtype named
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    prompt, negative = "a watercolor of a red cat on the beach", "a dog" if steps == 20 else ""
    noise = torch.randn(1, 4, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(1))
    theirs = pipe(
        prompt,
        negative_prompt=negative,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=model.guidance_scale,
        latents=noise.clone(),
        output_type="latent",
    ).images
    run = model.generate(prompt, negative_prompt=negative, steps=steps, latents=noise)
    check(f"after {steps} steps at {size}", run.latents[-1:], theirs, 1e-3)
    assert (theirs - noise).std() > 0.1


@pytest.mark.parametrize(
    "of, given",
    [
        (UNetConfig, {"block_out_channels": ["a", "b", "c", "d"]}),
        (UNetConfig, {"block_out_channels": [], "down_block_types": [], "up_block_types": []}),
        (UNetConfig, {"sample_size": [16]}),
        (UNetConfig, {"sample_size": 0}),
        (UNetConfig, {"sample_size": -4}),
        (UNetConfig, {"layers_per_block": True}),
        (UNetConfig, {"frobnicate": 0}),
        (VAEConfig, {"down_block_types": [[1]]}),
        (VAEConfig, {"scaling_factor": 0}),
        (SchedulerConfig, {"beta_start": -1.0}),
        (SchedulerConfig, {"beta_end": 5.0}),
        (SchedulerConfig, {"steps_offset": -3}),
        (SchedulerConfig, {"steps_offset": 500}),
        (SchedulerConfig, {"num_train_timesteps": 0}),
        (SamplingDefaults, {"guidance": float("inf")}),
    ],
)
def test_values_that_make_no_sense_are_refused_with_the_file_named(of, given):
    with pytest.raises(ValueError, match="^file.json: "):
        of.of(given, "file.json")


def test_a_device_or_a_dtype_that_torch_cannot_use_is_one_line():
    for options, says in (
        ({"device": "foo"}, "device foo: torch cannot use it"),
        ({"dtype": torch.int8}, "dtype must"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            minip2p.load(**options)
        assert "\n" not in str(error.value)
