"""The file of a run: a plain safetensors file that gives the run back, and is refused with one line if damaged."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from runs import same_latents
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minip2p
from minip2p import explicit
from minip2p.attention.contract import fused
from minip2p.io.files import shipped_weights
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.sampling.run_file import FORMAT, RunRecord, conditioning_tensors, read_run, run_metadata, write_run
from minip2p.sched import DDIMScheduler
from minip2p.text.encoder import TextEmbedding

SOURCE, TARGET, STEPS = "a cat and a house on grass", "a dog and a house on grass", 3


@pytest.fixture(scope="module")
def recorded(model):
    return model.record(SOURCE, seed=5, steps=STEPS, size=(64, 72), self_replace=1.0)


@pytest.fixture(scope="module")
def saved(recorded, tmp_path_factory):
    """The file of the recorded run. Tests that change it copy it."""
    file = tmp_path_factory.mktemp("runs") / "run.safetensors"
    recorded.save(file)
    return file


@pytest.fixture
def file(saved, tmp_path):
    """A copy of the run's file."""
    copy = tmp_path / "run.safetensors"
    copy.write_bytes(saved.read_bytes())
    return copy


def rewrite(file, change):
    """Applies change(tensors, metadata) to a safetensors file."""
    with safe_open(file, "pt") as f:
        tensors, metadata = {name: f.get_tensor(name).clone() for name in f.keys()}, dict(f.metadata())  # noqa: SIM118
    change(tensors, metadata)
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata)


def test_another_pipeline_of_the_same_model_opens_the_file(model, recorded, saved):
    other = minip2p.load(device=model.device)
    run = other.open(saved)
    fields = "prompt", "negative_prompt", "guidance_scale", "seed", "steps"
    assert all(getattr(run, name) == getattr(recorded, name) for name in fields)
    assert same_latents(run, recorded)
    assert same_latents(other.edit(run, TARGET), model.edit(recorded, TARGET))


@pytest.mark.filterwarnings("ignore:this model was trained without:minip2p.errors.Notice")
def test_the_file_is_a_safetensors_file_of_the_run(model, recorded, tmp_path):
    file = tmp_path / "deep" / "run.safetensors"
    night = model.text(["night"] * STEPS)
    conditioning = Conditioning(night, torch.randn(recorded.latents[1:].shape), 1, 0.25)
    run = replace(recorded, conditioning=conditioning, negative_prompt='a "b" ü', seed=None)
    run.save(file)
    tensors = load_file(file)
    assert torch.equal(tensors["latents"], recorded.latents) and "up.1.cross.q.2" in tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in recorded.qk_cache.tensors.items())
    opened = model.open(file)
    assert opened.seed is None and opened.negative_prompt == 'a "b" ü'
    assert torch.equal(opened.conditioning.uncond_embeddings.tokens, night.tokens.cpu())
    assert opened.conditioning.uncond_embeddings.pooled is None
    assert torch.equal(opened.conditioning.variance_noise, conditioning.variance_noise)
    assert (opened.conditioning.skip_steps, opened.conditioning.proximal_quantile) == (1, 0.25)
    assert same_latents(model.edit(opened, TARGET), model.edit(run, TARGET))
    assert [path.name for path in file.parent.iterdir()] == ["run.safetensors"]


def test_the_metadata_are_readable_text(model, recorded, saved):
    with safe_open(saved, "pt") as f:
        metadata = f.metadata()
    assert (
        metadata
        == run_metadata(model.components, recorded, fused)
        == {
            "format": "minip2p run 5",
            "model": model.components.fingerprint,
            "model_name": "tiny",
            "prompt": SOURCE,
            "negative_prompt": "",
            "guidance_scale": "4.0",
            "clip_skip": "1",
            "inversion": "",
            "seed": "5",
            "skip_steps": "0",
            "proximal_quantile": "0.0",
            "image_guidance_scale": "",
            "eta": "",
            "source_guidance_scale": "",
            "guidance_interval": "",
            "uncond_every": "1",
            "conditioning": "",
        }
    )
    assert metadata["format"] == FORMAT


def test_approximations_are_in_the_file(model, tmp_path):
    run = model.generate(SOURCE, steps=4, size=(64, 72), guidance_interval=(0.25, 1), uncond_every=2)
    run.save(tmp_path / "run.safetensors")
    opened = model.open(tmp_path / "run.safetensors")
    assert (opened.conditioning.guidance_interval, opened.conditioning.uncond_every) == ((0.25, 1.0), 2)
    assert same_latents(model.edit(opened, TARGET), model.edit(run, TARGET))


def test_the_conditioning_is_named_in_the_file(model, recorded):
    pooled, channels = torch.randn(STEPS, 6), torch.randn(1, 4, 8, 9)
    embeddings = TextEmbedding(torch.randn(STEPS, 7, 5), pooled)
    noise = torch.randn(STEPS, 4, 8, 9)
    conditioning = Conditioning(embeddings, noise, image=ImageConditioning(channels, 1.5))
    tensors = conditioning_tensors(conditioning)
    assert list(tensors) == ["uncond_tokens", "uncond_pooled", "variance_noise", "image_channels"]
    assert tensors["uncond_pooled"] is pooled and tensors["image_channels"] is channels
    assert tensors["variance_noise"] is noise and tensors["uncond_tokens"] is embeddings.tokens
    metadata = run_metadata(model.components, replace(recorded, conditioning=conditioning), fused)
    assert metadata["conditioning"] == "uncond_tokens uncond_pooled variance_noise image_channels"
    assert metadata["image_guidance_scale"] == "1.5"
    assert conditioning_tensors(Conditioning()) == {}


def test_a_run_without_its_model_is_written_and_read(model, tmp_path):
    latents = torch.randn(3, 4, 8, 9)
    write_run(model.components, RunRecord(SOURCE, latents, 2.5, "fog", 2**62, Conditioning()), tmp_path / "x")
    run = read_run(model.components, tmp_path / "x")
    assert (run.prompt, run.guidance_scale, run.negative_prompt, run.seed) == (SOURCE, 2.5, "fog", 2**62)
    assert torch.equal(run.latents, latents) and run.qk_cache is None and run.inversion == ""


def test_a_file_names_the_method_of_its_inversion_and_may_be_older_than_that(model, file):
    rewrite(file, lambda tensors, metadata: metadata.update(inversion="direct"))
    assert model.open(file).inversion == "direct"
    model.open(file).save(file.with_name("again.safetensors"))
    assert model.open(file.with_name("again.safetensors")).inversion == "direct"
    newer = "inversion", "model_name", "eta", "source_guidance_scale"
    rewrite(file, lambda tensors, metadata: [metadata.pop(name) for name in newer])
    assert model.open(file).inversion == ""


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, m: m.pop("format"), "not a run file"),
        (
            lambda t, m: m.update(format="minip2p run 4"),
            "a run file of another version of minip2p ('minip2p run 4', not ",
        ),
        (lambda t, m: m.pop("prompt"), "not a whole run (it has no prompt)"),
        (lambda t, m: m.update(model="x"), "the run of another model"),
        (lambda t, m: t.pop("latents"), "not a whole run (it has no latents)"),
        (lambda t, m: m.pop("conditioning"), "not a whole run (it has no conditioning)"),
        (lambda t, m: m.pop("image_guidance_scale"), "not a whole run (it has no image_guidance_scale)"),
        (lambda t, m: m.update(guidance_scale="much"), "not a whole run"),
        (lambda t, m: m.update(seed="1.5"), "not a whole run"),
        (lambda t, m: t.update(latents=t["latents"][:, :3].clone()), "not a whole run"),
        (lambda t, m: t.update(latents=t["latents"][:1].clone()), "not a whole run"),
        (lambda t, m: t.update(latents=t["latents"][0].clone()), "not a whole run"),
        (lambda t, m: t.update(latents=t["latents"].half()), "its latents are not t c h w, float32"),
        (lambda t, m: t.update(latents=t["latents"][None].clone()), "its latents are not t c h w, float32"),
        (lambda t, m: t.update(latents=t["latents"][..., :0].clone()), "its latents are not t c h w, float32"),
        (lambda t, m: m.update(guidance_scale="nan"), "guidance_scale must be a finite number"),
        (lambda t, m: m.update(image_guidance_scale="inf"), "its image_guidance_scale is not a number"),
        (lambda t, m: m.update(source_guidance_scale="inf"), "its source_guidance_scale is not a number"),
        (lambda t, m: m.update(eta="2"), "its eta is out of range"),
        (lambda t, m: m.update(eta="nan"), "its eta is out of range"),
        (lambda t, m: t.update({"correction.0": torch.zeros(1, 4, 8, 8)}), "correction.0 is not of this run"),
        (lambda t, m: m.update(seed="-1"), "seed must lie between"),
        (lambda t, m: m.update(clip_skip="99"), "clip_skip must lie between 1"),
        (lambda t, m: m.update(clip_skip="0"), "clip_skip is counted from 1"),
        (lambda t, m: m.update(uncond_every="0"), "uncond_every must be a whole number from 1 on"),
        (lambda t, m: m.update(guidance_interval="0.5 0.2"), "guidance_interval is two shares"),
        (lambda t, m: m.update(guidance_interval="0.5"), "its guidance_interval is not two shares"),
        (lambda t, m: t.update(latents=torch.zeros(1002, 4, 1, 1)), "steps must lie between 1 and 1000"),
        (
            lambda t, m: t.update({"up.1.cross.q.0": t["up.1.cross.q.0"].to(torch.complex64)}),
            "up.1.cross.q.0 is not of this run",
        ),
        (lambda t, m: t.update({"up.1.cross.q.0": t["up.1.cross.q.0"][:, :1]}), "up.1.cross.q.0 is not of this run"),
        (lambda t, m: t.update({"up.1.cross.q.9": t["up.1.cross.q.0"].clone()}), "up.1.cross.q.9 is not of this run"),
        (lambda t, m: t.update(uncond_tokens=torch.zeros(1, 77, 128)), "uncond_tokens is not of this run"),
        (lambda t, m: t.update(uncond_pooled=torch.zeros(STEPS, 8)), "it has pooled embeddings without tokens"),
        (
            lambda t, m: t.update(uncond_tokens=torch.zeros(STEPS, 77, 128), uncond_pooled=torch.zeros(STEPS, 8)),
            "uncond_pooled is not of this run",
        ),
        (lambda t, m: t.update(variance_noise=torch.zeros(1, 4, 8, 9)), "variance_noise is not of this run"),
        (lambda t, m: t.update(image_channels=torch.zeros(1, 4, 8, 9)), "this model reads no picture besides"),
        (
            lambda t, m: m.update(conditioning="variance_noise"),
            "besides its latents it should have variance_noise",
        ),
        (
            lambda t, m: t.update(variance_noise=torch.zeros(STEPS, 4, 8, 9)),
            "besides its latents it should have nothing",
        ),
        (lambda t, m: m.update(skip_steps=str(STEPS)), "skip_steps or proximal_quantile is out of range"),
        (lambda t, m: m.update(proximal_quantile="1"), "skip_steps or proximal_quantile is out of range"),
        (lambda t, m: m.update(skip_steps="some"), "not a whole run"),
        (lambda t, m: t.update(variance_noise=torch.full_like(t["latents"][1:], torch.nan)), "are not finite"),
        (lambda t, m: t.update(latents=torch.full_like(t["latents"], torch.nan)), "finite"),
    ],
)
def test_a_damaged_file_is_one_clear_line(model, file, change, message):
    rewrite(file, change)
    with pytest.raises(ValueError) as error:
        model.open(file)
    assert message in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_or_missing_file_is_named(model, file):
    with pytest.raises(FileNotFoundError, match="none.safetensors: no such file"):
        model.open(file.parent / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{file.parent}: a folder, not a file")):
        model.open(file.parent)
    data = file.read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match=re.escape(str(file))):
            model.open(file)


def test_keys_that_are_missing_in_the_cache_are_computed(model, recorded, file):
    rewrite(file, lambda tensors, metadata: tensors.pop("up.1.cross.k"))
    assert same_latents(model.edit(model.open(file), TARGET), model.edit(recorded, TARGET))


@pytest.mark.parametrize("change", ["unet", "vae", "text", "schedule", "dtype"])
def test_the_run_of_another_model_is_refused(saved, change):
    other = minip2p.load(dtype=torch.bfloat16 if change == "dtype" else None)
    if change == "schedule":
        scheduler = DDIMScheduler(replace(other.scheduler.config, beta_end=0.013))
        other = replace(other, components=replace(other.components, scheduler=scheduler))
    elif change != "dtype":
        network = {"unet": other.unet, "vae": other.vae, "text": other.text.encoders["text_encoder"]}[change]
        next(iter(network.parameters())).data += 1
    message = "the run of another model, or of this one with another dtype or scheduler: open it with that model"
    with pytest.raises(ValueError, match=message) as error:
        other.open(saved)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_in_the_place_of_the_file_is_named(recorded, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, and a file of that name was to be written"):
        recorded.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_with_a_custom_attention_cannot_be_saved(model, tmp_path):
    run = model.generate(SOURCE, steps=1, size=(64, 72), attend=explicit(lambda probs, site: probs.roll(1, -1)))
    with pytest.raises(ValueError, match="has an attention function of its own, which no file can hold"):
        run.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_written_over_the_models_weights(recorded, tmp_path):
    folder = shutil.copytree(shipped_weights("tiny"), tmp_path / "tiny")  # a copy: a failure must not destroy ours
    pipe = minip2p.load(folder)
    weights = next(iter(pipe.origin.files.values()))
    before = weights.read_bytes()
    with pytest.raises(ValueError, match=re.escape(weights.name)):
        replace(recorded, components=pipe.components).save(weights)
    assert weights.read_bytes() == before
