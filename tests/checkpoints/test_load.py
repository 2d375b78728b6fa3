"""From files to a model: what is wrong is named, other VAEs, schedulers of other kinds, dtypes, default guidance."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import (
    REMOVED,
    copy_folder,
    pipeline,
    same_models,
    same_tensors,
    smooth_picture,
    update_json,
    write_single_file,
)
from parity import check
from safetensors.torch import load_file, save_file

import minip2p
from minip2p.checkpoints.load import model_location
from minip2p.config import UNetConfig
from minip2p.io.files import shipped_weights
from minip2p.unet import UNet

TINY = shipped_weights("tiny")
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def tiny_folder(tmp_path):
    """The embedded model as a folder of links: any file may be replaced, and nothing is copied."""
    folder = tmp_path / "tiny"
    for file in TINY.rglob("*"):
        if file.is_file():
            link = folder / file.relative_to(TINY)
            link.parent.mkdir(exist_ok=True, parents=True)
            link.symlink_to(file)
    return folder


# What is wrong with a folder


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_the_broken_file_is_named(tiny_folder, component):
    weights, config = (
        tiny_folder / component / "diffusion_pytorch_model.safetensors",
        tiny_folder / component / "config.json",
    )
    valid = weights.resolve()
    tensors = load_file(valid)
    name = next(name for name in tensors if tensors[name].ndim == 4)
    cut, lacking, changed = (tiny_folder / file for file in ("cut", "lacking", "changed"))
    cut.write_bytes(valid.read_bytes()[:-1])
    save_file({n: t for n, t in tensors.items() if n != name}, lacking)
    save_file(tensors | {name: tensors[name][:1].clone()}, changed)
    broken = {cut: "not a whole safetensors", lacking: f"{name} is missing", changed: f"{name} has shape"}
    for file, message in broken.items():
        weights.unlink()
        weights.symlink_to(file)
        with pytest.raises(ValueError, match=message) as error:
            minip2p.load(tiny_folder)
        assert str(error.value).startswith(str(weights)) and "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        minip2p.load(tiny_folder)
    weights.symlink_to(valid)
    update_json(config, in_channels=json.loads(config.read_bytes())["in_channels"] + 1)
    with pytest.raises(ValueError, match=r"conv_in.weight has shape .* where the config says"):
        minip2p.load(tiny_folder)


def test_a_folder_that_is_missing_or_not_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; a model is a folder with unet/, vae/"):
        minip2p.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json: no such file; is .* a diffusers model folder"):
        minip2p.load(tmp_path)


def test_configurations_that_cannot_be_honoured_or_contradict_each_other_are_named(tiny_folder):
    update_json(tiny_folder / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type 'sample' is not one of"):
        minip2p.load(tiny_folder)
    update_json(tiny_folder / "scheduler/scheduler_config.json", prediction_type="epsilon")
    update_json(tiny_folder / "unet/config.json", cross_attention_dim=5)
    with pytest.raises(ValueError, match="the text encoder is .* wide, but the UNet reads 5"):
        minip2p.load(tiny_folder)


def test_the_channels_of_the_networks_must_agree(tiny_folder):
    """A UNet, complete in itself, that reads more channels than latents, an image and a mask have."""
    config = tiny_folder / "unet/config.json"
    wider = UNet(UNetConfig.from_dict(json.loads(config.read_text()) | {"in_channels": 10}))
    update_json(config, in_channels=10)
    (tiny_folder / UNET_WEIGHTS).unlink()
    save_file(wider.state_dict(), tiny_folder / UNET_WEIGHTS)
    message = "the UNet reads 10 channels and predicts 4, but the VAE's latents have 4"
    with pytest.raises(ValueError, match=message):
        minip2p.load(tiny_folder)


def test_a_wrong_width_of_sdxls_extra_condition_is_one_clear_line(family, tmp_path):
    folder = copy_folder(family("SDXL")[1], tmp_path / "odd")
    update_json(folder / "unet/config.json", addition_time_embed_dim=16)
    with pytest.raises(ValueError, match="is not the width of the pooled text embedding, 128, plus six times addition"):
        minip2p.load(folder)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "foo"}, "device foo: torch cannot use it"),
        ({"device": "meta"}, "device meta: torch cannot use it"),
        ({"dtype": torch.int8}, "dtype must"),
    ],
)
def test_a_device_or_a_dtype_that_torch_cannot_use_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        minip2p.load(**options)
    assert "\n" not in str(error.value)


# What is loaded


def test_nothing_stays_on_the_meta_device(cpu_model):
    for network in (cpu_model.unet, cpu_model.vae, *cpu_model.text.encoders.values()):
        assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"cpu"}


def test_a_model_has_the_requested_dtype(model):
    half = minip2p.load(dtype=torch.bfloat16)
    assert model.dtype == torch.float32 and half.dtype == half.vae.encoder.conv_in.weight.dtype == torch.bfloat16
    run = half.generate("a cat", steps=2, size=(64, 64))
    assert run.latents.dtype == torch.float32 and run.image.size == (64, 64)
    expected = model.generate("a cat", steps=2, size=(64, 64)).latents
    assert (run.latents - expected).std() < 0.1 * expected.std()


def test_the_vae_of_sdxl_stays_float32_in_float16(family, tmp_path):
    """It overflows, unless its configuration says that it does not; bfloat16 does not overflow."""
    _, folder, _ = family("SDXL")
    model = minip2p.load(folder, dtype=torch.float16)
    assert (model.unet.conv_in.weight.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert model.components.decode(torch.randn(1, 4, 16, 16)).isfinite().all()
    assert model.invert(smooth_picture(), "a cat", steps=1).picture.isfinite().all()
    fixed = copy_folder(folder, tmp_path / "fixed")
    update_json(fixed / "vae/config.json", force_upcast=False)
    assert minip2p.load(fixed, dtype=torch.float16).vae.dtype == torch.float16
    assert minip2p.load(family("SD 1")[1], dtype=torch.float16).vae.dtype == torch.float16
    assert minip2p.load(folder, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


@pytest.mark.parametrize("steps, size", [(20, (128, 128)), (6, (128, 160))])
def test_diffusers_opens_the_embedded_model_and_generates_the_same(model, steps, size):
    diffusers.utils.logging.disable_progress_bar()
    pipe = StableDiffusionPipeline.from_pretrained(TINY)  # its files state float32
    pipe.set_progress_bar_config(disable=True)
    assert {network.dtype for network in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    prompt, negative_prompt = "a watercolor of a red cat on the beach", "a dog" if steps == 6 else ""
    noise = torch.randn(1, 4, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(1))
    expected = pipe(
        prompt,
        negative_prompt=negative_prompt,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=model.default_guidance,
        latents=noise.clone(),
        output_type="latent",
    ).images
    run = model.generate(prompt, negative_prompt=negative_prompt, steps=steps, latents=noise)
    check(f"after {steps} steps at {size}", run.latents[-1:], expected, 1e-3)
    assert (expected - noise).std() > 0.1


def test_force_zeros_for_empty_prompt_is_read_from_model_index(family, tmp_path):
    """True if it is not mentioned, as in diffusers."""
    folder = copy_folder(family("SDXL")[1], tmp_path / "other")
    index = folder / "model_index.json"
    for value, zeros in ((REMOVED, True), (True, True), (False, False)):
        update_json(index, force_zeros_for_empty_prompt=value)
        assert minip2p.load(folder).text.zero_empty_prompt == zeros
    index.unlink()
    assert minip2p.load(folder).text.zero_empty_prompt


SCHEDULERS = (
    "DDPM",
    "PNDM",
    "LMSDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "UniPCMultistep",
    "KDPM2Discrete",
    "LCM",
    "TCD",
    "SASolver",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers itself
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_of_another_kind_keeps_its_betas_offset_and_prediction_type(family, tmp_path, kind):
    pipe, folder, _ = family("SD 2, v")
    expected = minip2p.load(folder).scheduler.config
    folder = copy_folder(folder, tmp_path / "other")
    shutil.rmtree(folder / "scheduler")
    other = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config)
    other.save_pretrained(folder / "scheduler")
    config = minip2p.load(folder).scheduler.config
    for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "num_train_timesteps"):
        assert getattr(config, name) == getattr(expected, name), name
    if "steps_offset" in other.config:
        assert config.steps_offset == 1


# The default guidance scale


def test_a_folder_may_state_its_default_guidance(tiny_folder, model):
    assert minip2p.load(tiny_folder).default_guidance == model.default_guidance
    update_json(tiny_folder / "minip2p.json", guidance=3.25)
    assert minip2p.load(str(tiny_folder)).default_guidance == 3.25
    (tiny_folder / "minip2p.json").unlink()
    assert minip2p.load(tiny_folder).default_guidance == 7.5


# Another VAE


def bare_vae(file):
    """The VAE of a single file as a file of its own, without the prefix of its tensors."""
    prefix = "first_stage_model."
    return {name.removeprefix(prefix): t for name, t in load_file(file).items() if name.startswith(prefix)}


def test_another_vae_may_be_a_folder_a_model_or_a_file(family, tmp_path):
    folder = family("SD 1")[1]
    pipeline("SD 1", seed=50).save_pretrained(tmp_path / "other")
    write_single_file(tmp_path / "other", tmp_path / "other.safetensors")
    save_file(bare_vae(tmp_path / "other.safetensors"), tmp_path / "alone.safetensors")
    expected, unet = minip2p.load(tmp_path / "other").vae, minip2p.load(folder).unet
    for location in ("other", "other/vae", "other.safetensors", "alone.safetensors"):
        model = minip2p.load(folder, vae=tmp_path / location)
        assert same_tensors(model.vae, expected) and same_tensors(model.unet, unet), location
        assert model.vae.config.scaling_factor == 0.18215
    with pytest.raises(FileNotFoundError, match="nowhere"):
        minip2p.load(folder, vae=tmp_path / "nowhere")


def test_another_vae_that_does_not_state_its_scale_has_that_of_the_models_own(family, tmp_path):
    """A file with a VAE alone does not state it; for a component's file in diffusers' names, the config.json does."""
    pipe, folder, file = family("SDXL")
    save_file(bare_vae(file), tmp_path / "vae.safetensors")
    for location in (tmp_path / "vae.safetensors", folder / VAE_WEIGHTS):
        model = minip2p.load(folder, vae=location)
        assert model.vae.config.scaling_factor == 0.13025 and same_tensors(model.vae, pipe.vae)
    folder = copy_folder(folder, tmp_path / "shifted")
    update_json(folder / "vae/config.json", shift_factor=0.5, force_upcast=False)
    config = minip2p.load(folder, vae=tmp_path / "vae.safetensors").vae.config
    assert (config.shift_factor, config.force_upcast) == (0.5, False)


def test_of_several_files_with_a_vae_the_named_one_is_read(family, tmp_path):
    """Also through links, as in the hub's cache; without its configuration it is one clear line."""
    folder = copy_folder(family("SD 1")[1], tmp_path / "model")
    weights = folder / VAE_WEIGHTS
    other = {name: t + 1 for name, t in load_file(weights).items()}
    save_file(other, folder / "vae/diffusion_pytorch_model.non_ema.safetensors")
    model = minip2p.load(folder, vae=folder / "vae/diffusion_pytorch_model.non_ema.safetensors")
    assert torch.equal(model.vae.state_dict()["decoder.conv_in.bias"], other["decoder.conv_in.bias"])
    linked = tmp_path / "linked/vae"
    linked.mkdir(parents=True)
    for name in ("config.json", weights.name):
        (linked / name).symlink_to(folder / "vae" / name)
    assert same_tensors(minip2p.load(folder, vae=linked / weights.name).vae, minip2p.load(folder).vae)
    shutil.copy(weights, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="has no VAE in the names of the original code; .* needs its config.json"):
        minip2p.load(folder, vae=tmp_path / "vae.safetensors")


# Other layouts of a folder


def test_16_bit_variants_and_sharded_weights_are_read(family, tmp_path):
    pipe, folder, _ = family("SDXL")
    expected = minip2p.load(folder)
    for variant in ("bf16", "fp16"):
        pipe.save_pretrained(tmp_path / variant, variant=variant)
        assert (tmp_path / variant / f"unet/diffusion_pytorch_model.{variant}.safetensors").exists()
        assert same_models(minip2p.load(tmp_path / variant), expected)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert (tmp_path / "shards/unet/diffusion_pytorch_model.safetensors.index.json").exists()
    assert same_models(minip2p.load(tmp_path / "shards"), expected)
    pipe.save_pretrained(tmp_path / "both", max_shard_size="1MB", variant="fp16")
    assert same_models(minip2p.load(tmp_path / "both"), expected)


def test_a_model_that_ships_is_loaded_by_its_name_unless_a_folder_has_it(tmp_path, monkeypatch):
    assert model_location(None) == model_location("tiny") == shipped_weights("tiny")
    assert model_location("tiny-fast") == shipped_weights("tiny-fast")
    for name in ("tiny_fast", "tinyfast", "TINY-FAST"):
        with pytest.raises(
            FileNotFoundError, match=f"^{name}: no such file or folder, and the models that ship are tiny"
        ):
            minip2p.load(name)
    assert model_location("org/tiny-fast") == "org/tiny-fast" and model_location(Path("tiny-fast")) == Path("tiny-fast")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-fast").mkdir()
    assert model_location("tiny-fast") == "tiny-fast"


# Parts of a model that are in a folder beside it


def write_beside(tiny_folder, name="sibling", parts_from="tiny"):
    """A folder beside `tiny_folder` with its UNet and scheduler, which names it for the other parts."""
    folder = tiny_folder.parent / name
    for part in ("unet", "scheduler", "model_index.json"):
        copy = shutil.copytree if (tiny_folder / part).is_dir() else shutil.copy
        (folder / part).parent.mkdir(exist_ok=True)
        copy(tiny_folder / part, folder / part)
    (folder / "minip2p.json").write_text(json.dumps({"guidance": 2.0, "parts_from": parts_from}))
    return folder


def test_a_model_takes_the_parts_that_it_lacks_from_the_folder_that_it_names(tiny_folder, tmp_path, monkeypatch):
    folder, expected = write_beside(tiny_folder), minip2p.load(tiny_folder)
    loaded = minip2p.load(folder)
    assert same_models(loaded, expected) and loaded.default_guidance == 2.0
    monkeypatch.chdir(folder)
    assert same_models(minip2p.load(Path(".")), expected)
    loaded.save(tmp_path / "complete")
    shutil.rmtree(tiny_folder)
    assert same_models(minip2p.load(tmp_path / "complete"), expected)
    assert "parts_from" not in json.loads((tmp_path / "complete/minip2p.json").read_text())


def test_parts_that_a_model_has_are_its_own_and_a_unet_is_never_taken(tiny_folder):
    folder = write_beside(tiny_folder)
    shutil.copytree(tiny_folder / "vae", folder / "vae")
    weights = folder / VAE_WEIGHTS
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    mine, expected = minip2p.load(folder).vae.state_dict(), minip2p.load(tiny_folder).vae.state_dict()
    assert all(torch.equal(mine[name], 2 * tensor) for name, tensor in expected.items())
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileNotFoundError, match="sibling/unet/config.json"):
        minip2p.load(folder)


@pytest.mark.parametrize("name", ["../tiny", "a/b", "/tmp", "..", ".", "a\\b"])
def test_parts_come_from_no_other_place_than_beside_the_model(name, tiny_folder):
    folder = write_beside(tiny_folder, parts_from=name)
    with pytest.raises(ValueError, match="minip2p.json: parts_from must be the name of a folder beside this one"):
        minip2p.load(folder)


def test_a_folder_of_parts_that_is_not_there_is_named(tiny_folder):
    folder = write_beside(tiny_folder, parts_from="small")
    with pytest.raises(FileNotFoundError, match="takes parts from the folder small beside it, and there is none"):
        minip2p.load(folder)


@pytest.mark.parametrize("name", ["tiny-fast", "tiny-instruct"])
def test_the_models_that_ship_beside_tiny_have_its_parts(name, cpu_model):
    other = minip2p.load(name)
    assert {part.name for part in shipped_weights(name).iterdir() if part.is_dir()} == {"scheduler", "unet"}
    encoders = [pipe.text.encoders["text_encoder"] for pipe in (other, cpu_model)]
    assert same_tensors(other.vae, cpu_model.vae) and same_tensors(*encoders)
    weights, those_of_tiny = other.unet.state_dict(), cpu_model.unet.state_dict()
    assert not torch.equal(weights["conv_out.weight"], those_of_tiny["conv_out.weight"])
