"""Records: the same bits as streaming, a size that is predicted, files that are whole, and files that are not."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minip2p
from minip2p import LocalBlend, explicit
from minip2p.io.tensors import SafetensorsBuffer, layout_bytes
from minip2p.sampling.conditioning import Conditioning
from minip2p.sampling.qk_cache import CachePolicy, cache_layout
from minip2p.sched import DDIMScheduler

SOURCE, STEPS = "a cat and a house on grass", 4
TARGETS = ["a dog and a house on grass", "a cat and a house on grass at night"]
OPTIONS = [
    {},
    dict(cross_replace=1.0, self_replace=1.0),
    dict(local_blend=LocalBlend("house", start=0)),
    dict(reweight={"house": 2}),
]


@pytest.fixture(scope="module")
def recorded(model):
    return model.record(SOURCE, seed=5, steps=STEPS, self_replace=1.0)


def same(one, other):
    return torch.equal(one.latents, other.latents)


@pytest.mark.parametrize("options", OPTIONS)
def test_streamed_recorded_and_loaded_are_equal_to_the_bit(model, recorded, tmp_path, options):
    streamed = model.edit(SOURCE, TARGETS, seed=5, steps=STEPS, **options)
    recorded.save(tmp_path / "run.safetensors")
    filed = model.record(SOURCE, seed=5, steps=STEPS, self_replace=1.0, file=tmp_path / "filed.safetensors")
    for run in (recorded, filed, model.open(tmp_path / "run.safetensors"), model.open(tmp_path / "filed.safetensors")):
        before = model.rows
        for one, other in zip(streamed, model.edit(run, TARGETS, **options), strict=True):
            assert same(one, other) and same(one.source, run)
        assert model.rows - before == 2 * STEPS * 2 - 1  # the source did not run


def test_another_process_reads_the_file(model, recorded, tmp_path):
    recorded.save(tmp_path / "run.safetensors")
    other = minip2p.load()
    run = other.open(tmp_path / "run.safetensors")
    fields = "prompt", "negative", "guidance", "seed", "steps"
    assert all(getattr(run, name) == getattr(recorded, name) for name in fields)
    assert same(other.edit(run, TARGETS[0]), model.edit(recorded, TARGETS[0]))


def test_the_record_of_a_run_equals_the_record_of_its_start(model, recorded):
    again = model.record(model.generate(SOURCE, seed=5, steps=STEPS), self_replace=1.0)
    assert again.record.tensors.keys() == recorded.record.tensors.keys()
    assert all(torch.equal(again.record.tensors[name], tensor) for name, tensor in recorded.record.tensors.items())


def test_what_was_not_kept_is_made_anew(model):
    run = model.record(SOURCE, seed=5, steps=STEPS, cross_replace=0.5, self_replace=0.25)  # cross at 2 steps, self at 1
    before = model.rows
    made = model.edit(run, TARGETS[0], cross_replace=0.5, self_replace=0.25)
    assert model.rows - before == 2 * STEPS
    before = model.rows
    longer = model.edit(
        run, TARGETS[0], cross_replace=0.8, self_replace=0.5
    )  # reads 4 steps, of which the first is kept
    assert model.rows - before == 2 * STEPS + 2 * 3
    assert same(longer, model.edit(SOURCE, TARGETS[0], seed=5, steps=STEPS, cross_replace=0.8, self_replace=0.5))
    assert not same(longer, made)


def test_a_record_of_some_sites_serves_the_edits_that_reach_no_others(model, recorded):
    where = minip2p.SiteFilter(places=("up",), strides=(1, 2))
    run = model.record(SOURCE, seed=5, steps=STEPS, self_replace=1.0, sites=where)
    assert {name.split(".")[0] for name in run.record.tensors} == {"up"}
    assert layout_bytes({n: (t.dtype, tuple(t.shape)) for n, t in run.record.tensors.items()}) < sum(
        tensor.nbytes for tensor in recorded.record.tensors.values()
    )
    before = model.rows
    made = model.edit(run, TARGETS[0], sites=where)
    assert model.rows - before == 2 * STEPS and same(made, model.edit(recorded, TARGETS[0], sites=where))
    assert same(model.edit(run, TARGETS[0]), model.edit(recorded, TARGETS[0])) and model.rows - before > 6 * STEPS


def test_a_record_in_bfloat16_is_half_as_large_and_close(model, recorded):
    half = model.record(SOURCE, seed=5, steps=STEPS, self_replace=1.0, dtype=torch.bfloat16)
    sizes = [sum(t.nbytes for t in run.record.tensors.values()) for run in (half, recorded)]
    assert 2 * sizes[0] == sizes[1]
    gap = model.edit(half, TARGETS[0]).latents - model.edit(recorded, TARGETS[0]).latents
    assert 0 < gap.square().mean().sqrt() < 0.05 * recorded.latents[-1].std()


def test_the_size_is_predicted_and_by_hand_right(model, recorded):
    """Widths 64 (16², 3 blocks), 160 (8², 3), 256 (4², 1): q at all steps, k of self too, k of cross once."""
    own = {name: (t.dtype, tuple(t.shape)) for name, t in recorded.record.tensors.items()}
    kept = cache_layout(model.unet, (16, 16), 77, STEPS, CachePolicy((0, STEPS), (0, STEPS), 1024), torch.float32)
    assert own == kept
    q = 3 * 64 * 256 + 3 * 160 * 64 + 256 * 16
    k = 77 * (3 * 64 + 3 * 160 + 256)
    assert layout_bytes(kept) == 4 * (STEPS * 3 * q + k)
    few = cache_layout(model.unet, (16, 16), 77, STEPS, CachePolicy((1, 3), (0, 1), 64), torch.float16)
    assert layout_bytes(few) == 2 * (2 * q + k + 2 * (3 * 160 * 64 + 256 * 16))


def test_only_floating_point_numbers_are_kept(model):
    with pytest.raises(ValueError, match="cannot be kept as torch.int8, only as a dtype of floating-point numbers"):
        model.record(SOURCE, steps=1, dtype=torch.int8)


def test_the_budget_is_kept(model, tmp_path):
    before = model.rows
    with pytest.raises(ValueError, match=r"the record would take 1.0 MB of memory, its budget is 0.5: give it a file"):
        model.record(SOURCE, steps=2, budget=5e5)
    assert model.rows == before
    run = model.record(SOURCE, steps=2, budget=5e5, file=tmp_path / "run.safetensors")
    assert isinstance(run.latents, torch.Tensor) and (tmp_path / "run.safetensors").stat().st_size > 9e5


def test_nothing_is_left_of_a_record_that_went_wrong(model, tmp_path):
    calls = []

    def broken(steps):
        for step in steps:
            calls.append(step)
            if len(calls) == 2:
                raise KeyboardInterrupt
            yield step

    from minip2p.sampling.run_file import record_run as record

    with pytest.raises(KeyboardInterrupt):
        record(
            model,
            model.prepare(SOURCE, steps=3),
            CachePolicy((0, 3), (0, 0), 0),
            dtype=torch.float32,
            budget=0,
            file=tmp_path / "run.safetensors",
            progress=broken,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(dtype="float16"), "a dtype of torch and a budget in bytes"),
        (dict(budget="x"), "a budget in bytes"),
        (dict(budget=float("nan")), "a budget in bytes"),
        (dict(sites="down"), "where is a Where, not 'down'"),
        (dict(self_max_queries="x"), "self_pixels is a whole number"),
        (dict(self_max_queries=-1), "self_pixels is a whole number"),
        (dict(cross_replace=2), "the steps of cross are shares"),
        (dict(self_replace=2), "the steps of self are shares"),
    ],
)
def test_what_a_record_cannot_be_is_one_clear_line(model, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        model.record(SOURCE, steps=1, **options)
    assert "\n" not in str(caught.value)


def test_a_record_of_a_run_with_an_attention_of_its_own(model):
    doubled = explicit(lambda probs, site: 2 * probs)
    kept = model.record(SOURCE, seed=5, steps=2, attend=doubled)
    assert torch.equal(kept.latents, model.generate(SOURCE, seed=5, steps=2, attend=doubled).latents)


def test_a_folder_in_the_place_of_a_runs_file_is_named(model, recorded, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, and a file of that name was to be written"):
        recorded.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_runs_file_is_a_safetensors_file(model, recorded, tmp_path):
    file = tmp_path / "deep" / "run.safetensors"
    way = Conditioning(model.text("night").repeat(STEPS, 1, 1), torch.randn(recorded.latents[1:].shape), 1, 0.25)
    steps = replace(recorded, conditioning=way, negative_prompt='a "b" ü', seed=None)
    steps.save(file)
    tensors = load_file(file)
    assert torch.equal(tensors["latents"], recorded.latents) and "up.1.cross.q.3" in tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in recorded.record.tensors.items())
    again = model.open(file)
    assert again.seed is None and again.negative_prompt == 'a "b" ü'
    assert torch.equal(again.conditioning.uncond_embeddings, way.uncond_embeddings) and torch.equal(
        again.conditioning.noise, way.noise
    )
    assert (again.conditioning.skip, again.conditioning.proximal) == (1, 0.25)
    assert same(model.edit(again, TARGETS[0]), model.edit(steps, TARGETS[0]))
    assert [path.name for path in file.parent.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_block_is_read_by_the_safetensors_library(tmp_path, dtype):
    shapes = {"a": (dtype, (3, 1, 2)), "b": (dtype, ()), "c": (dtype, (0, 4))}
    for n, tensor in enumerate(SafetensorsBuffer(shapes, {"say": "é"}, tmp_path / "x").tensors.values()):
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + n)
    with safe_open(tmp_path / "x", "pt") as f:
        assert f.metadata() == {"say": "é"}
        for n, (name, (_, shape)) in enumerate(shapes.items()):
            expected = (torch.arange(np.prod(shape, dtype=int)).reshape(shape) + n).to(dtype)
            assert torch.equal(f.get_tensor(name), expected) and f.get_tensor(name).dtype == dtype


def damaged(file, change):
    with safe_open(file, "pt") as f:
        tensors, said = {name: f.get_tensor(name) for name in f.keys()}, dict(f.metadata())  # noqa: SIM118
    change(tensors, said)
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, said)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t, s: s.pop("format"), "not a run's file"),
        (lambda t, s: s.pop("prompt"), "not a whole run"),
        (lambda t, s: s.update(model="x"), "the run of another model"),
        (lambda t, s: t.pop("latents"), "not a whole run"),
        (lambda t, s: s.update(guidance="much"), "not a whole run"),
        (lambda t, s: s.update(seed="1.5"), "not a whole run"),
        (lambda t, s: t.update(latents=t["latents"][:, :3].clone()), "not a whole run"),
        (lambda t, s: t.update(latents=t["latents"][:1].clone()), "not a whole run"),
        (lambda t, s: t.update(latents=t["latents"][0].clone()), "not a whole run"),
        (lambda t, s: t.update(latents=t["latents"].half()), "not t c h w, float32"),
        (lambda t, s: t.update(latents=t["latents"][None].clone()), "not t c h w, float32"),
        (lambda t, s: t.update(latents=t["latents"][..., :0].clone()), "not t c h w, float32"),
        (lambda t, s: s.update(guidance="nan"), "guidance must be a finite number"),
        (lambda t, s: s.update(seed="-1"), "seed must lie between"),
        (lambda t, s: t.update(latents=torch.zeros(1002, 4, 1, 1)), "steps must lie between 1 and 1000"),
        (
            lambda t, s: t.update({"up.1.cross.q.0": t["up.1.cross.q.0"].to(torch.complex64)}),
            "up.1.cross.q.0 is not of",
        ),
        (lambda t, s: t.update({"up.1.cross.q.0": t["up.1.cross.q.0"][:, :1]}), "up.1.cross.q.0 is not of this run"),
        (lambda t, s: t.update({"up.1.cross.q.9": t["up.1.cross.q.0"].clone()}), "up.1.cross.q.9 is not of this run"),
        (lambda t, s: t.update(unconditional=torch.zeros(1, 77, 128)), "unconditional is not of this run"),
        (lambda t, s: t.update(noise=torch.zeros(1, 4, 16, 16)), "noise is not of this run"),
        (lambda t, s: s.update(along="noise"), "it should have noise beside its latents"),
        (lambda t, s: s.pop("prompt"), "it has no prompt"),
        (lambda t, s: s.update(skip="4"), "skip or proximal is out of range"),
        (lambda t, s: s.update(proximal="1"), "skip or proximal is out of range"),
        (lambda t, s: s.update(skip="some"), "not a whole run"),
        (lambda t, s: t.update(noise=torch.full_like(t["latents"][1:], torch.nan)), "finite"),
        (lambda t, s: t.update(latents=torch.full_like(t["latents"], torch.nan)), "finite"),
    ],
)
def test_a_file_that_is_no_whole_run_is_named(model, recorded, tmp_path, change, says):
    file = tmp_path / "run.safetensors"
    recorded.save(file)
    damaged(file, change)
    with pytest.raises(ValueError) as error:
        model.open(file)
    assert says in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["unet", "vae", "text", "schedule", "dtype"])
def test_the_run_of_another_model_is_refused(model, recorded, tmp_path, change):
    recorded.save(tmp_path / "run.safetensors")
    other = minip2p.load(dtype=torch.bfloat16 if change == "dtype" else None)
    if change == "schedule":
        other.scheduler = DDIMScheduler(replace(other.scheduler.config, beta_end=0.013))
    elif change != "dtype":
        part = {"unet": other.unet, "vae": other.vae, "text": other.text.encoders["text_encoder"]}[change]
        next(iter(part.parameters())).data += 1
    with pytest.raises(ValueError, match="the run of another model"):
        other.open(tmp_path / "run.safetensors")


def test_at_guidance_0_nothing_is_read_and_nothing_kept(model, tmp_path):
    run = model.record(SOURCE, steps=2, guidance_scale=0, file=tmp_path / "run.safetensors")
    assert not run.record.tensors and load_file(tmp_path / "run.safetensors").keys() == {"latents"}
    streamed = model.edit(SOURCE, TARGETS[0], steps=2, guidance_scale=0, local_blend="house")
    assert same(model.edit(run, TARGETS[0], local_blend="house"), streamed) and not streamed.mask.any()


def test_keys_that_are_missing_are_made_anew(model, recorded, tmp_path):
    file = tmp_path / "run.safetensors"
    recorded.save(file)
    damaged(file, lambda tensors, said: tensors.pop("up.1.cross.k"))
    assert same(model.edit(model.open(file), TARGETS[0]), model.edit(recorded, TARGETS[0]))


def test_a_file_that_is_not_there_or_broken_is_named(model, recorded, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors: no such file"):
        model.open(tmp_path / "none.safetensors")
    file = tmp_path / "run.safetensors"
    recorded.save(file)
    data = file.read_bytes()
    for cut in (0, 7, 100, len(data) - 1):
        file.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=re.escape(str(file))):
            model.open(file)


def test_an_attention_of_ones_own_is_in_no_file(model, tmp_path):
    roll = explicit(lambda probs, site: probs.roll(1, -1))
    run = model.generate(SOURCE, steps=1, attend=roll)
    for write in (lambda: run.save(tmp_path / "x"), lambda: model.record(run, file=tmp_path / "x")):
        with pytest.raises(ValueError, match="has an attention of its own, which no file can hold"):
            write()
    kept = model.record(run)
    assert same(model.edit(kept, SOURCE), run) and not list(tmp_path.iterdir())


def test_records_and_edits_of_other_sizes(model):
    run = model.record(SOURCE, steps=2, size=(40, 72), self_replace=1.0)
    assert same(model.edit(run, TARGETS[0]), model.edit(SOURCE, TARGETS[0], steps=2, size=(40, 72)))
