"""Every Stable Diffusion, small and with random weights: its pipeline in diffusers, its layouts, and broken ones."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from families import FAMILIES, OFFICIAL, pipeline, single, table
from parity import check
from PIL import Image
from safetensors.torch import load_file, save_file
from test_official import UNETS

import minip2p
from minip2p.attention.contract import fused
from minip2p.baselines import MasaCtrl
from minip2p.checkpoints.components import ImageConditioning, unet_rows
from minip2p.checkpoints.single_file import LAYERS, SingleFile
from minip2p.cli import main
from minip2p.config import UNetConfig, VAEConfig
from minip2p.io.images import read_mask, to_pil
from minip2p.p2p.batching import plan_batches
from minip2p.p2p.editing import run_edits
from minip2p.p2p.targets import make_targets
from minip2p.sampling.conditioning import inpainting_conditioning
from minip2p.sampling.trajectory import sample

PROMPT, STEPS = "a cat on the beach", 20


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def same(ours, theirs, beside=()):
    """Whether two modules have the same tensors, to the bit; beside: ends of names that ours need not have."""
    a, b = ({name.removeprefix("text_model."): t for name, t in one.state_dict().items()} for one in (ours, theirs))
    b = {name: t for name, t in b.items() if not name.endswith(tuple(beside) or "\0")}
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_models(a, b):
    encoders = a.text.encoders.keys() == b.text.encoders.keys() and all(
        same(one, b.text.encoders[name]) for name, one in a.text.encoders.items()
    )
    return same(a.unet, b.unet) and same(a.vae, b.vae) and encoders


PAINTERS = ("InstructPix2Pix", "inpainting")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PAINTERS])
def test_a_familys_latents_after_20_steps_are_those_of_its_pipeline(family, name):
    pipe, folder, _ = family(name)
    model = minip2p.load(folder)
    run = model.generate(PROMPT, seed=1, steps=STEPS, negative_prompt="fog" if "Turbo" not in name else "")
    with torch.no_grad():
        theirs = pipe(
            PROMPT,
            latents=run.latents[:1].clone(),
            num_inference_steps=STEPS,
            output_type="latent",
            negative_prompt=run.negative_prompt or None,
            guidance_scale=model.guidance_scale,
        ).images
    check(f"{name}, float32", run.latents[-1:], theirs, 1e-3)  # 6e-6


def test_stable_diffusion_xl_is_told_rows_and_columns(family):
    pipe, folder, _ = family("SDXL")
    run = minip2p.load(folder).generate(PROMPT, seed=2, steps=5, size=(32, 64), negative_prompt="fog")
    with torch.no_grad():
        theirs = pipe(
            PROMPT,
            latents=run.latents[:1].clone(),
            num_inference_steps=5,
            output_type="latent",
            height=32,
            width=64,
            negative_prompt="fog",
        ).images
    check("SDXL, 32 x 64, float32", run.latents[-1:], theirs, 1e-3)


def test_an_empty_negative_prompt_is_nothing_to_stable_diffusion_xl(family):
    """diffusers takes zeros for one that is not given."""
    pipe, folder, _ = family("SDXL")
    model = minip2p.load(folder)
    run = model.generate(PROMPT, seed=2, steps=5)
    with torch.no_grad():
        theirs = pipe(PROMPT, latents=run.latents[:1].clone(), num_inference_steps=5, output_type="latent").images
    check("SDXL without a negative prompt, float32", run.latents[-1:], theirs, 1e-3)
    assert not model.text.negative_prompt("").any() and model.text("").any()


def test_the_readmes_table_of_what_loads_is_of_what_is_tested(family):
    """A row for each family of these tests, its pipeline and its guidance; and the official tensors by which it is
    held in test_official.py and test_full.py."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert table() in readme, table()
    assert set(OFFICIAL.values()) == UNETS.keys()
    for name in FAMILIES:
        assert f"| {name} |" in table() and f"| {minip2p.load(family(name)[1]).guidance_scale:g} |" in table()
        assert type(family(name)[0]).__name__ in table()


def test_guidance_is_the_familys_own(family):
    said = {name: minip2p.load(family(name)[1]).guidance_scale for name in FAMILIES}
    assert said == {
        "SD 1": 7.5,
        "SD 2 base": 7.5,
        "SD 2, v": 7.5,
        "SDXL": 5.0,
        "InstructPix2Pix": 7.5,
        "inpainting": 7.5,
        "SD Turbo": 1.0,
        "SDXL Turbo": 1.0,
    }


def test_at_guidance_0_a_distilled_model_runs_no_unconditional_rows(family):
    """Their cards say 0, by which diffusers means the conditional rows alone: here that is 1."""
    model = minip2p.load(family("SD Turbo")[1])
    before = model.rows
    run = model.generate(PROMPT, steps=2, guidance_scale=0)
    assert model.rows - before == 2 and run.guidance_scale == 1.0
    assert torch.equal(run.latents, model.generate(PROMPT, steps=2, guidance_scale=1).latents)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PAINTERS])
def test_prompt_to_prompt_on_every_family(family, name):
    """A word is swapped; into itself it is itself; map space and value space agree; a photograph is met."""
    model = minip2p.load(family(name)[1])
    run = model.generate(PROMPT, seed=1, steps=4)
    swap = {"cross": 1.0, "self_replace": 0.5}
    edited, plain, mapped = (
        model.edit(run, "a dog on the beach", **how)
        for how in (swap, {"cross": 0, "self_replace": 0}, {**swap, "explicit": True})
    )
    assert (edited.latents[-1] - plain.latents[-1]).abs().max() > 1e-3
    check(f"{name}, in maps, float32", mapped.latents, edited.latents, 1e-4)
    itself = model.edit(run, PROMPT, **swap)
    check(f"{name}, itself, float32", itself.latents, run.latents, 1e-4)
    photo = model.invert(torch.rand(3, 32, 32) * 2 - 1, PROMPT, steps=4)
    assert photo.maps(["cat"]).shape == (1, 32, 32) and photo.latents.isfinite().all()
    nulled = model.invert(torch.rand(3, 32, 32) * 2 - 1, PROMPT, steps=2, method="null-text", num_inner_steps=1)
    assert nulled.conditioning.uncond_embeddings.shape == (2, *model.text("").shape[1:])


def test_inversions_of_stable_diffusion_xl_have_its_negative_prompt_of_nothing(family):
    """The embeddings that null-text begins with; and the noise of edit-friendly, which leads back by the same rows."""
    model, seen = minip2p.load(family("SDXL")[1]), picture()
    assert not model.invert(
        seen, PROMPT, steps=2, method="null-text", num_inner_steps=0
    ).conditioning.uncond_embeddings.any()
    run = model.invert(seen, PROMPT, steps=4, method="edit-friendly", skip=0)
    start = model.prepare(PROMPT, latents=run.latents[:1], steps=4)
    again = sample(model, replace(start, conditioning=run.conditioning))
    check("SDXL, edit-friendly, float32", again.latents[:-1], run.latents[:-1], 1e-3)


def test_two_tokenizers_of_two_lengths_are_one_clear_line(family, tmp_path):
    folder = copied(family("SDXL")[1], tmp_path / "odd")
    file = folder / "tokenizer_2/tokenizer_config.json"
    for length, says in (
        (40, "its tokenizers are of 77 and 40 tokens"),
        (99, "model_max_length is 99, and the text en"),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": length}))
        with pytest.raises(ValueError, match=says) as error:
            minip2p.load(folder)
        assert "\n" not in str(error.value)


def test_a_record_of_stable_diffusion_xl_is_kept_and_read(family, tmp_path):
    model = minip2p.load(family("SDXL")[1])
    kept = model.record(PROMPT, seed=1, steps=3, file=tmp_path / "run.safetensors")
    again = model.open(tmp_path / "run.safetensors")
    a, b = (model.edit(run, "a dog on the beach") for run in (kept, again))
    assert torch.equal(a.latents, b.latents)


def test_the_vae_of_stable_diffusion_xl_stays_float32_in_float16(family, tmp_path):
    """Unless its config says that it does not overflow."""
    _, folder, _ = family("SDXL")
    model = minip2p.load(folder, dtype=torch.float16)
    assert (model.unet.conv_in.weight.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert model.decode(torch.randn(1, 4, 16, 16)).isfinite().all()
    assert model.invert(picture(), PROMPT, steps=1).picture.isfinite().all()
    fixed = copied(folder, tmp_path / "fixed")
    file = fixed / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_upcast": False}))
    assert minip2p.load(fixed, dtype=torch.float16).vae.dtype == torch.float16
    assert minip2p.load(family("SD 1")[1], dtype=torch.float16).vae.dtype == torch.float16
    assert minip2p.load(folder, dtype=torch.bfloat16).vae.dtype == torch.bfloat16  # which does not overflow


def picture(seed=0):
    """A smooth random one, 3 32 32 in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(1, 3, 4, 4, generator=g) * 2 - 1, (32, 32), mode="bilinear")[0]


@pytest.mark.parametrize("w_t, w_i", [(7.5, 1.5), (3.0, 1.0)])
def test_instruct_pix2pix_is_its_pipeline(family, w_t, w_i):
    """Guidance by the picture and by the words (Brooks et al. 2022, eq. 3)."""
    pipe, folder, _ = family("InstructPix2Pix")
    model, seen = minip2p.load(folder), picture()
    run = model.instruct(
        seen, "make it snow", seed=1, steps=STEPS, guidance_scale=w_t, image_guidance_scale=w_i, negative_prompt="fog"
    )
    with torch.no_grad():
        theirs = pipe(
            "make it snow",
            image=(seen[None] + 1) / 2,
            latents=run.latents[:1].clone(),
            guidance_scale=w_t,
            image_guidance_scale=w_i,
            negative_prompt="fog",
            num_inference_steps=STEPS,
            output_type="latent",
        ).images
    check("InstructPix2Pix, float32", run.latents[-1:], theirs, 1e-3)  # 6e-6
    assert run.picture.shape == (3, 32, 32)


def test_two_way_guidance_by_hand_and_its_rows(family):
    """Each row as it is alone; and none where its factor is 0."""
    model = minip2p.load(family("InstructPix2Pix")[1])
    x, channels = torch.randn(2, 4, 16, 16), torch.randn(1, 4, 16, 16)
    empty, words = model.text(""), model.text(["a cat", "a dog"])
    zeros, full = ImageConditioning(torch.zeros_like(channels)), ImageConditioning(channels)
    eps_u = model.guided_noise(x, 500, empty, words, 0.0, fused, image=zeros)
    eps_i = model.guided_noise(x, 500, empty, words, 0.0, fused, image=full)
    eps_c = model.guided_noise(x, 500, words, words, 1.0, fused, image=full)
    for w_t, w_i, rows in ((7.5, 1.5, 6), (7.5, 1.0, 4), (1.0, 1.0, 2), (1.5, 1.5, 4), (0.0, 1.5, 4), (0.0, 1.0, 2)):
        before = model.rows
        made = model.guided_noise(x, 500, empty, words, w_t, fused, image=ImageConditioning(channels, w_i))
        want = eps_u + w_i * (eps_i - eps_u) + w_t * (eps_c - eps_i)
        torch.testing.assert_close(made, want, atol=1e-4, rtol=1e-4)
        assert model.rows - before == rows == unet_rows(2, w_t, image=ImageConditioning(channels, w_i)), (w_t, w_i)


def test_inpainting_is_its_pipeline(family):
    """The pipeline draws the masked picture's latents; here they are the mean, which it is given."""
    pipe, folder, _ = family("inpainting")
    model, seen, mask = minip2p.load(folder), picture(), torch.zeros(32, 32)
    mask[8:24, 4:19] = 1
    run = model.inpaint(seen, mask, PROMPT, seed=1, steps=STEPS)
    beside = run.conditioning.beside.channels
    assert torch.equal(beside[0, 0], F.interpolate(mask[None, None], (16, 16), mode="nearest")[0, 0])
    grey = torch.where(mask.bool(), 0.0, seen)
    torch.testing.assert_close(beside[:, 1:], model.encode(grey[None]))
    with torch.no_grad():
        theirs = pipe(
            PROMPT,
            image=seen[None],
            mask_image=mask[None, None],
            masked_image_latents=beside[:, 1:].clone(),
            latents=run.latents[:1].clone(),
            num_inference_steps=STEPS,
            height=32,
            width=32,
            output_type="latent",
            strength=1.0,
        ).images
    check("inpainting, float32", run.latents[-1:], theirs, 1e-3)


@pytest.mark.parametrize("name", PAINTERS)
def test_prompt_to_prompt_on_models_that_read_a_picture(family, tmp_path, name):
    """A run is edited into itself, and into another; kept in a file with its picture; its words are found."""
    model = minip2p.load(family(name)[1])
    if name == "inpainting":
        run = model.inpaint(picture(), torch.ones(32, 32), PROMPT, seed=1, steps=3)
    else:
        run = model.instruct(picture(), PROMPT, seed=1, steps=3)
    itself, other = model.edit(run, [PROMPT, "a dog on the beach"], cross_replace=1.0)
    check(f"{name}, itself, float32", itself.latents, run.latents, 1e-4)
    assert (other.latents[-1] - run.latents[-1]).abs().max() > 1e-3
    run.save(tmp_path / "run.safetensors")
    again = model.edit(model.open(tmp_path / "run.safetensors"), "a dog on the beach", cross_replace=1.0)
    torch.testing.assert_close(again.latents, other.latents, atol=1e-3, rtol=1e-4)
    assert run.maps(["cat"]).shape == (1, 32, 32)
    kept = model.record(run, file=tmp_path / "record.safetensors")
    assert kept.conditioning.beside is run.conditioning.beside
    mutual = model.edit(run, "a dog on the beach", cross_replace=0, self_replace=0, attend=MasaCtrl(run))
    assert mutual.latents.isfinite().all() and not torch.equal(mutual.latents, run.latents)


@pytest.mark.parametrize("w, w_i", [(0.0, 1.5), (0.0, 1.0), (7.5, 1.5), (3.0, 3.0), (1.0, 1.0)])
def test_edits_of_an_instruction_cost_what_is_predicted(family, w, w_i):
    """At w_T = 0 too, where no words are read; and the neighbours read the picture as well."""
    model = minip2p.load(family("InstructPix2Pix")[1])
    run = model.instruct(picture(), PROMPT, steps=3, guidance_scale=w, image_guidance_scale=w_i)
    targets = make_targets(
        model, run, ["a dog on the beach", "a pig on the beach"], None, None, cross_replace=0.5, self_replace=0.5
    )
    before = model.rows
    run_edits(model, run, targets)
    assert model.rows - before == plan_batches(model, run, targets).cost(run)
    assert (
        model.edit(run, "a dog on the beach", cross_replace=0, self_replace=0, attend=MasaCtrl(run))
        .latents.isfinite()
        .all()
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"architectures": 3},
        {"eos_token_id": None},
        {"num_hidden_layers": 10**5},
    ],
)
def test_an_odd_text_encoder_is_one_clear_line(family, tmp_path, odd):
    folder = copied(family("SDXL")[1], tmp_path / "odd")
    file = folder / "text_encoder_2/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | odd))
    with pytest.raises(ValueError) as error:
        minip2p.load(folder).text("a cat")
    assert "text_encoder_2" in str(error.value) and "\n" not in str(error.value)


def test_what_else_a_text_encoders_configuration_says_changes_nothing(family, tmp_path):
    folder = copied(family("SD 1")[1], tmp_path / "odd")
    file = folder / "text_encoder/config.json"
    more = {"return_dict": False, "output_hidden_states": True, "attention_dropout": 0.5}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    assert torch.equal(minip2p.load(folder).text(PROMPT), minip2p.load(family("SD 1")[1]).text(PROMPT))


def test_an_odd_size_of_what_sdxl_adds_is_one_clear_line(family, tmp_path):
    folder = copied(family("SDXL")[1], tmp_path / "odd")
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"addition_time_embed_dim": 16}))
    with pytest.raises(ValueError, match="is not the prompt's 128 and six times addition_time_embed_dim"):
        minip2p.load(folder)


def test_an_empty_negative_prompt_is_nothing_where_nothing_else_is_said(family, tmp_path):
    """diffusers' default; and no zeros where the folder says so."""
    folder = copied(family("SDXL")[1], tmp_path / "other")
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    for said, zeros in ((None, True), (True, True), (False, False)):
        file.write_text(
            json.dumps(
                index | {"force_zeros_for_empty_prompt": said}
                if said is not None
                else {name: value for name, value in index.items() if name != "force_zeros_for_empty_prompt"}
            )
        )
        assert minip2p.load(folder).text.zeros == zeros
    file.unlink()
    assert minip2p.load(folder).text.zeros


def test_a_mask_with_transparency_is_black_there_as_a_file_and_as_an_image(family, tmp_path):
    model, ink = minip2p.load(family("inpainting")[1]), Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    ink.paste((255, 255, 255, 255), (8, 8, 24, 24))
    ink.save(tmp_path / "ink.png")
    a, b = (inpainting_conditioning(model, picture(), mask, "crop").channels for mask in (ink, tmp_path / "ink.png"))
    assert torch.equal(a, b) and a[0, 0].sum() == 64
    assert read_mask(ink).sum() == 256


def test_a_benchmark_of_a_model_that_reads_a_picture_is_one_clear_line(family, tmp_path, capsys):
    said = ["bench-edits", "--model", str(family("inpainting")[1]), "--count", "1", "-o", str(tmp_path / "out")]
    assert main.main(said) == 2
    assert "this model makes a picture of a picture" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_size_that_no_memory_holds_is_one_clear_line(family, tmp_path, capsys):
    to_pil(picture()).save(tmp_path / "a.png")
    for command, name in ((["instruct", str(tmp_path / "a.png")], "InstructPix2Pix"), (["generate"], "SD 1")):
        said = [
            *command,
            PROMPT,
            "--model",
            str(family(name)[1]),
            "--size",
            "1000000x1000000",
            "-o",
            str(tmp_path / "b"),
        ]
        assert main.main(said) == 2
        assert "is too large: 67108864 are the most" in capsys.readouterr().err


def test_weights_that_are_read_are_never_overwritten(family, tmp_path, capsys):
    folder = copied(family("InstructPix2Pix")[1], tmp_path / "model")
    to_pil(picture()).save(tmp_path / "a.png")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    before, out = weights.read_bytes(), ["--steps", "1", "-o", str(tmp_path / "out.png"), "--record", str(weights)]
    assert main.main(["instruct", str(tmp_path / "a.png"), "x", "--model", str(folder), *out]) == 2
    assert "is read, and would be overwritten" in capsys.readouterr().err
    _, plain, file = family("SD 1")
    single_file = tmp_path / "a.safetensors"
    shutil.copy(file, single_file)
    given = ["--model", str(single_file), "--config", str(plain), "--steps", "1"]
    linked = copied(plain, tmp_path / "linked")
    elsewhere = tmp_path / "elsewhere.safetensors"
    (linked / "unet/diffusion_pytorch_model.safetensors").rename(elsewhere)
    (linked / "unet/diffusion_pytorch_model.safetensors").symlink_to(elsewhere)
    before_link, model = elsewhere.read_bytes(), minip2p.load(linked)
    with pytest.raises(ValueError, match="elsewhere.safetensors: the model's weights are in it"):
        model.record(PROMPT, steps=1, file=elsewhere)
    with pytest.raises(ValueError, match="the model's weights are in it"):
        model.generate(PROMPT, steps=1).save(elsewhere)
    assert elsewhere.read_bytes() == before_link
    for command in (
        ["generate", PROMPT, "-o", str(tmp_path / "out.png"), "--record", str(single_file)],
        ["invert", str(tmp_path / "a.png"), PROMPT, "-o", str(single_file)],
    ):
        assert main.main([*command, *given]) == 2
        assert "is read, and would be overwritten" in capsys.readouterr().err
    assert weights.read_bytes() == before and single_file.read_bytes() == file.read_bytes()
    assert not (tmp_path / "out.png").exists()


def test_a_model_is_asked_for_what_it_can(family):
    plain, instruct, inpaint = (minip2p.load(family(name)[1]) for name in ("SD 1", *PAINTERS))
    seen, mask = picture(), torch.ones(32, 32)
    for wrong, says in (
        (lambda: plain.instruct(seen, PROMPT), "this model follows no instructions: its UNet reads 0 channels"),
        (lambda: plain.inpaint(seen, mask, PROMPT), "this model does not paint into a picture: its UNet reads 0"),
        (lambda: inpaint.instruct(seen, PROMPT), "this model follows no instructions: its UNet reads 5 channels"),
        (lambda: instruct.inpaint(seen, mask, PROMPT), "this model does not paint into a picture: its UNet reads 4"),
        (lambda: instruct.generate(PROMPT), "this model makes a picture of a picture: use instruct"),
        (lambda: inpaint.invert(seen, PROMPT), "this model makes a picture of a picture: use instruct"),
        (lambda: inpaint.edit(PROMPT, "a dog"), "this model makes a picture of a picture: use instruct"),
        (lambda: inpaint.inpaint(seen, mask * 0, PROMPT), "the mask is nowhere white"),
        (lambda: inpaint.inpaint(seen, mask * 2, PROMPT), "lies between 0 and 1"),
        (
            lambda: instruct.instruct(seen, PROMPT, image_guidance_scale=float("nan")),
            "picture_guidance must be a finite",
        ),
        (lambda: instruct.instruct(seen, PROMPT, latents=torch.zeros(1, 4, 8, 8)), "latents must be 1 4 h w"),
    ):
        with pytest.raises(ValueError, match=says):
            wrong()


# Layouts


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_is_the_folder_to_the_bit_here_and_in_diffusers(family, name):
    pipe, folder, file = family(name)
    ours = minip2p.load(file, config=folder)
    assert same_models(ours, minip2p.load(folder))
    theirs = type(pipe).from_single_file(str(file), config=str(folder))
    assert same(ours.unet, theirs.unet) and same(ours.vae, theirs.vae)
    for part, encoder in ours.text.encoders.items():
        assert same(encoder, getattr(theirs, part), ["position_ids"])


@pytest.mark.parametrize(
    "name, said",
    [
        ("SD 1", {}),
        ("SDXL", {}),
        ("SD 2 base", {"modelspec.prediction_type": "epsilon"}),
        ("SD 2, v", {"modelspec.prediction_type": "v"}),
    ],
)
def test_what_a_single_file_is_is_read_off_its_keys_and_shapes(family, tmp_path, name, said):
    """All that a folder's configs say, but for the size of a small model's pictures."""
    _, folder, file = family(name)
    save_file(load_file(file), tmp_path / "a.safetensors", said)
    found = SingleFile(tmp_path / "a.safetensors", None)
    for part, of in (("unet", UNetConfig), ("vae", VAEConfig)):
        theirs = of.of(json.loads((folder / part / "config.json").read_text()))
        ours = of.of(found.config(part))
        for key in of.__dataclass_fields__.keys() - {"sample_size", "upcast_attention"}:
            values = [
                one.per_level(getattr(one, key))
                if key in ("attention_head_dim", "transformer_layers_per_block")
                else getattr(one, key)
                for one in (ours, theirs)
            ]
            assert values[0] == values[1], key
    theirs = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert {key: theirs[key] for key in found.config("scheduler")} == found.config("scheduler")
    for part in ("text_encoder", "text_encoder_2") if name == "SDXL" else ("text_encoder",):
        theirs = json.loads((folder / part / "config.json").read_text())
        ours = found.config(part)
        assert {key: theirs[key] for key in ours if key != "architectures"} == {
            key: value for key, value in ours.items() if key != "architectures"
        }


def test_a_single_stable_diffusion_2_that_does_not_say_what_it_predicts_is_one_clear_line(family):
    with pytest.raises(ValueError, match="predicts noise or v, and the file does not say which: give, as config, a f"):
        SingleFile(family("SD 2, v")[2], None).config("scheduler")


def test_a_folder_with_tokenizers_alone_is_enough_and_what_it_says_counts(family, tmp_path):
    """The rest is then read off the file; its metadata and the folder must not contradict each other; how many channels
    the UNet reads, the file knows; and the folder's own guidance is taken."""
    _, folder, file = family("SDXL")
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folder / part, tmp_path / "small" / part)
    (tmp_path / "small/minip2p.json").write_text('{"guidance": 3.0}')
    made = minip2p.load(file, config=tmp_path / "small")
    assert same_models(made, minip2p.load(folder)) and made.guidance_scale == 3.0 and made.text.zeros
    base, v = family("SD 2 base")[1], family("SD 2, v")[2]
    save_file(load_file(v), tmp_path / "v.safetensors", {"modelspec.prediction_type": "v"})
    with pytest.raises(ValueError, match="says of itself that it predicts v_prediction, and this does not"):
        minip2p.load(tmp_path / "v.safetensors", config=base)
    painter = minip2p.load(family("inpainting")[2], config=family("SD 1")[1])
    assert same(painter.unet, family("inpainting")[0].unet) and painter.beside == 5


def test_a_single_file_needs_a_tokenizer(family):
    with pytest.raises(ValueError, match="a single file has no tokenizer: give, as config, a folder"):
        minip2p.load(family("SD 1")[2])
    with pytest.raises(ValueError, match="a config is for a single file"):
        minip2p.load(family("SD 1")[1], config=family("SD 1")[1])


OLD = {
    "model_ema.decay": torch.ones(()),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3),
    "betas": torch.ones(4),
    "alphas_cumprod": torch.ones(4),
    "sqrt_alphas_cumprod": torch.ones(4),
    "posterior_variance": torch.ones(4),
    "log_one_minus_alphas_cumprod": torch.ones(4),
    "logvar": torch.ones(4),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
}


def test_what_old_files_have_besides_is_ignored_and_nothing_else(family, tmp_path):
    _, folder, file = family("SD 1")
    tensors = load_file(file)
    save_file(tensors | OLD, tmp_path / "old.safetensors")
    assert same_models(minip2p.load(tmp_path / "old.safetensors", config=folder), minip2p.load(folder))
    for odd in (
        "model.diffusion_model.extra.weight",
        "first_stage_model.extra.weight",
        "lora_unet_a.alpha",
        "cond_stage_model.transformer.text_model.extra.weight",
    ):
        save_file(tensors | {odd: torch.ones(1)}, tmp_path / "odd.safetensors")
        with pytest.raises(ValueError, match="extra.weight|lora_unet_a.alpha is of no model") as error:
            minip2p.load(tmp_path / "odd.safetensors", config=folder).text("a cat")
        assert "odd.safetensors" in str(error.value) and "\n" not in str(error.value)
    for gone in ("first_stage_model.quant_conv.bias", "model.diffusion_model.out.2.bias"):
        save_file({name: t for name, t in tensors.items() if name != gone}, tmp_path / "less.safetensors")
        with pytest.raises(ValueError, match=f"{gone} is missing"):
            minip2p.load(tmp_path / "less.safetensors", config=folder)


def test_a_vae_from_elsewhere(family, tmp_path):
    """From a folder, a model's folder, a single file of it alone, or one of a whole model."""
    folder = family("SD 1")[1]
    other = pipeline("SD 1", seed=50)
    other.save_pretrained(tmp_path / "other")
    single(tmp_path / "other", tmp_path / "other.safetensors")
    alone = {
        name.removeprefix("first_stage_model."): t
        for name, t in load_file(tmp_path / "other.safetensors").items()
        if name.startswith("first_stage_model.")
    }
    save_file(alone, tmp_path / "alone.safetensors")
    want = minip2p.load(tmp_path / "other").vae
    for where in ("other", "other/vae", "other.safetensors", "alone.safetensors"):
        model = minip2p.load(folder, vae=tmp_path / where)
        assert same(model.vae, want) and same(model.unet, minip2p.load(folder).unet), where
        assert model.vae.config.scaling_factor == 0.18215
    with pytest.raises(FileNotFoundError, match="nowhere"):
        minip2p.load(folder, vae=tmp_path / "nowhere")


def test_another_vae_that_does_not_say_its_scale_has_the_models_own(family, tmp_path):
    """As one in a file alone; and a part's own file, in diffusers' names, has its config beside it."""
    pipe, folder, file = family("SDXL")
    alone = {
        name.removeprefix("first_stage_model."): t
        for name, t in load_file(file).items()
        if name.startswith("first_stage_model.")
    }
    save_file(alone, tmp_path / "vae.safetensors")
    for where in (tmp_path / "vae.safetensors", folder / "vae/diffusion_pytorch_model.safetensors"):
        model = minip2p.load(folder, vae=where)
        assert model.vae.config.scaling_factor == 0.13025 and same(model.vae, pipe.vae)
    own = copied(folder, tmp_path / "own")
    config = own / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": 0.5, "force_upcast": False}))
    made = minip2p.load(own, vae=tmp_path / "vae.safetensors").vae.config
    assert (made.shift_factor, made.force_upcast) == (0.5, False)


def test_a_vaes_own_file_is_the_one_that_is_named(family, tmp_path):
    """Beside others of other numbers; and one without its configuration is one clear line."""
    folder = copied(family("SD 1")[1], tmp_path / "model")
    plain = folder / "vae/diffusion_pytorch_model.safetensors"
    other = {name: t + 1 for name, t in load_file(plain).items()}
    save_file(other, folder / "vae/diffusion_pytorch_model.non_ema.safetensors")
    model = minip2p.load(folder, vae=folder / "vae/diffusion_pytorch_model.non_ema.safetensors")
    assert torch.equal(model.vae.state_dict()["decoder.conv_in.bias"], other["decoder.conv_in.bias"])
    linked = tmp_path / "linked/vae"  # as in the hub's cache
    linked.mkdir(parents=True)
    for name in ("config.json", plain.name):
        (linked / name).symlink_to(folder / "vae" / name)
    assert same(minip2p.load(folder, vae=linked / plain.name).vae, minip2p.load(folder).vae)
    shutil.copy(plain, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="no VAE in the original names; that of diffusers has a config.json beside"):
        minip2p.load(folder, vae=tmp_path / "vae.safetensors")


def test_a_single_stable_diffusion_2_has_its_last_layer_or_has_it_not(family, tmp_path):
    """It is not read; a folder's configuration says how many are. Official encoders are known by their width."""
    pipe, folder, file = family("SD 2, v")
    tensors = load_file(file)
    last = max(int(name.split(".")[4]) for name in tensors if name.startswith("cond_stage_model.model.transformer."))
    less = {name: t for name, t in tensors.items() if f"resblocks.{last}." not in name and "text_proj" not in name}
    save_file(less, tmp_path / "less.safetensors")
    assert same(
        minip2p.load(tmp_path / "less.safetensors", config=folder).text.clip_encoders[0].encoder, pipe.text_encoder
    )
    few = {name: t for name, t in less.items() if f"resblocks.{last - 1}." not in name}
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(ValueError, match=rf"few.safetensors: .*resblocks.{last - 1}.* is missing"):
        minip2p.load(tmp_path / "few.safetensors", config=folder)
    assert dict(LAYERS) == {768: 12, 1024: 23, 1280: 32}


def test_a_tokenizer_with_more_tokens_than_the_encoder_has_is_one_clear_line(family, tmp_path):
    folder = copied(family("SD 1")[1], tmp_path / "odd")
    config, weights = folder / "text_encoder/config.json", folder / "text_encoder/model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 100, "eos_token_id": 99}))
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("token_embedding.weight"))
    save_file(tensors | {name: tensors[name][:100].clone()}, weights)
    with pytest.raises(ValueError, match="tokenizer: has .* tokens, and the text encoder 100"):
        minip2p.load(folder)


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' own, as it makes them
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_of_another_kind_keeps_its_betas_offset_and_prediction(family, tmp_path, kind):
    folder = copied(family("SD 2, v")[1], tmp_path / "other")
    want = minip2p.load(folder).scheduler.config
    shutil.rmtree(folder / "scheduler")
    other = getattr(diffusers, f"{kind}Scheduler").from_config(family("SD 2, v")[0].scheduler.config)
    other.save_pretrained(folder / "scheduler")
    made = minip2p.load(folder).scheduler.config
    for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "num_train_timesteps"):
        assert getattr(made, name) == getattr(want, name), name
    if "steps_offset" in other.config:
        assert made.steps_offset == 1


@pytest.mark.parametrize(
    "change",
    [
        ("unet", {"attention_head_dim": 4}),
        ("text_encoder", {"hidden_act": "gelu"}),
        ("vae", {"scaling_factor": 0.2}),
    ],
)
def test_a_run_of_a_model_with_other_configurations_is_refused(family, tmp_path, change):
    """Whose weights are the same."""
    folder = copied(family("SD 1")[1], tmp_path / "other")
    minip2p.load(family("SD 1")[1]).generate(PROMPT, steps=1).save(tmp_path / "run.safetensors")
    minip2p.load(folder).open(tmp_path / "run.safetensors")
    config = folder / change[0] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change[1]))
    with pytest.raises(ValueError, match="another model"):
        minip2p.load(folder).open(tmp_path / "run.safetensors")


def test_16_bit_variants_and_sharded_weights(family, tmp_path):
    pipe, folder, _ = family("SDXL")
    for variant in ("bf16", "fp16"):
        pipe.save_pretrained(tmp_path / variant, variant=variant)
        assert (tmp_path / variant / f"unet/diffusion_pytorch_model.{variant}.safetensors").exists()
        assert same_models(minip2p.load(tmp_path / variant), minip2p.load(folder))
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert (tmp_path / "shards/unet/diffusion_pytorch_model.safetensors.index.json").exists()
    assert same_models(minip2p.load(tmp_path / "shards"), minip2p.load(folder))
    pipe.save_pretrained(tmp_path / "both", max_shard_size="1MB", variant="fp16")
    assert same_models(minip2p.load(tmp_path / "both"), minip2p.load(folder))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda index, file: index["weight_map"].update({"conv_in.bias": "../../other.safetensors"}), "not beside it"),
        (lambda index, file: index["weight_map"].update({"conv_in.bias": "nowhere.safetensors"}), "by the index"),
        (
            lambda index, file: index.update(weight_map={"conv_in.bias": "nowhere.safetensors"}),
            "nowhere.safetensors: no s",
        ),
        (lambda index, file: index["weight_map"].update({"more.bias": file}), "more.bias is in none of its files"),
        (lambda index, file: index["weight_map"].pop("conv_in.bias"), None),  # it is there, and that is enough
        (lambda index, file: index.pop("weight_map"), "has no weight_map"),
        (lambda index, file: index.update(weight_map={"a": 3}), "has no weight_map"),
    ],
)
def test_an_index_is_read_strictly(family, tmp_path, change, says):
    pipe, folder, _ = family("SD 1")
    pipe.unet.save_pretrained(tmp_path / "unet", max_shard_size="1MB")
    whole = copied(folder, tmp_path / "whole")
    shutil.rmtree(whole / "unet")
    shutil.move(tmp_path / "unet", whole / "unet")
    path = whole / "unet/diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index, index["weight_map"]["conv_in.weight"])
    path.write_text(json.dumps(index))
    if says is None:
        assert same(minip2p.load(whole).unet, pipe.unet)
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
            minip2p.load(whole)
        assert "\n" not in str(error.value)


def test_pickled_weights_are_named_and_not_read(family, tmp_path):
    folder = copied(family("SD 1")[1], tmp_path / "old")
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.bin: is pickled, and so a program, which is never"):
        minip2p.load(folder)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=r"model.ckpt: is pickled, and so a program, which is never run here"):
        minip2p.load(tmp_path / "model.ckpt", config=folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_diffusers_knows_what_was_saved(family, tmp_path, name):
    """By the class that the folder names."""
    minip2p.load(family(name)[1]).save(tmp_path / "saved")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "saved")) is type(family(name)[0])


@pytest.mark.parametrize("name", ["SD 1", "SD 2, v", "SDXL Turbo"])
def test_a_model_that_is_saved_opens_here_and_in_diffusers(family, tmp_path, name):
    """Also one from a single file, and of another guidance; in its own dtype; whole or not at all."""
    pipe, folder, file = family(name)
    model = minip2p.load(file, config=folder)
    model.guidance_scale = 3.0
    model.save(tmp_path / "saved")
    again = minip2p.load(tmp_path / "saved")
    assert (
        same_models(again, model) and again.guidance_scale == 3.0 and again.scheduler.config == model.scheduler.config
    )
    assert again.text.zeros == model.text.zeros
    theirs = type(pipe).from_pretrained(tmp_path / "saved")
    assert same(model.unet, theirs.unet) and same(model.vae, theirs.vae)
    for part, encoder in model.text.encoders.items():
        assert same(encoder, getattr(theirs, part), ["position_ids"])
    a, b = ({key: value for key, value in one.scheduler.config.items() if key[0] != "_"} for one in (pipe, theirs))
    assert a == b
    with pytest.raises(FileExistsError, match="saved: is there already"):
        model.save(tmp_path / "saved")
    half = minip2p.load(folder, dtype=torch.bfloat16)
    half.save(tmp_path / "half")
    assert load_file(tmp_path / "half/unet/diffusion_pytorch_model.safetensors")["conv_in.bias"].dtype == torch.bfloat16
    assert same_models(minip2p.load(tmp_path / "half", dtype=torch.bfloat16), half)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "saved"]


def test_a_save_that_fails_leaves_nothing(family, tmp_path, monkeypatch):
    model = minip2p.load(family("SD 1")[1])
    monkeypatch.setattr(shutil, "copytree", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        model.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_the_command_line_takes_a_single_file_and_another_vae(family, tmp_path, capsys):
    _, folder, file = family("SD 1")
    out = tmp_path / "a.png"
    said = ["generate", PROMPT, "--steps", "2", "--size", "32x32", "-o", str(out)]
    assert main.main([*said, "--model", str(file), "--config", str(folder), "--vae", str(folder / "vae")]) == 0
    want = minip2p.load(folder).generate(PROMPT, steps=2, size=(32, 32)).image
    with Image.open(out) as made:
        assert made.tobytes() == want.tobytes()
        assert f"Model: {file.name}, VAE: vae" in made.text["parameters"]
    capsys.readouterr()
    assert main.main([*said, "--model", str(file)]) == 2
    error = capsys.readouterr().err
    assert "a single file has no tokenizer" in error and error.count("\n") == 1


def test_the_command_line_instructs_and_paints(family, tmp_path, capsys):
    """A picture, and a run that can be edited; by a model that cannot, one clear line."""
    seen = to_pil(picture())
    seen.save(tmp_path / "a b.png")
    mask = Image.new("RGBA", seen.size)
    mask.paste((255, 255, 255, 255), (8, 8, 24, 24))
    mask.save(tmp_path / "mask.png")
    given = [str(tmp_path / "a b.png"), "make it snow", "--steps", "2", "-o", str(tmp_path / "out.png")]
    models = {name: ["--model", str(family(name)[1])] for name in ("SD 1", *PAINTERS)}
    run = ["--record", str(tmp_path / "run.safetensors")]
    assert main.main(["instruct", *given, *models["InstructPix2Pix"], *run, "--picture-guidance", "1.2"]) == 0
    want = minip2p.load(family("InstructPix2Pix")[1]).instruct(seen, "make it snow", steps=2, image_guidance_scale=1.2)
    with Image.open(tmp_path / "out.png") as made:
        assert made.tobytes() == want.image.tobytes()
        assert "Picture guidance: 1.2" in made.text["parameters"] and "a b.png" in made.text["parameters"]
    edit = ["edit", run[1], "make it rain", "-o", str(tmp_path / "edited.png")]
    assert main.main([*edit, *models["InstructPix2Pix"]]) == 0 and (tmp_path / "edited.png").exists()
    painted = ["inpaint", *given, "--mask", str(tmp_path / "mask.png")]
    assert main.main([*painted, *models["inpainting"]]) == 0
    white = torch.zeros(32, 32)
    white[8:24, 8:24] = 1
    want = minip2p.load(family("inpainting")[1]).inpaint(seen, white, "make it snow", steps=2)
    with Image.open(tmp_path / "out.png") as made:
        assert made.tobytes() == want.image.tobytes()
    capsys.readouterr()
    wrong = (
        (["instruct", *given, *models["SD 1"]], "this model follows no instructions"),
        ([*painted, *models["SD 1"]], "this model does not paint into a picture"),
        (["instruct", *given[:-1], given[0], *models["InstructPix2Pix"]], "is read, and would be overwritten"),
        (
            ["generate", PROMPT, *models["inpainting"], "-o", str(tmp_path / "no.png")],
            "use instruct, or where it has a m",
        ),
        (
            ["instruct", *given, *models["InstructPix2Pix"], "--picture-guidance", "nan"],
            "picture_guidance must be a fin",
        ),
        (["inpaint", *given, *models["inpainting"]], "the following arguments are required: --mask"),
    )
    for arguments, says in wrong:
        with contextlib.suppress(SystemExit):
            assert main.main(arguments) == 2
        error = capsys.readouterr().err
        assert says in error and "Traceback" not in error, says
    assert not (tmp_path / "no.png").exists()
