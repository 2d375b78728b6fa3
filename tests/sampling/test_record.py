"""Recording a run: edits read the record with the same bits, its size is bounded, and a file is whole or not there."""

import shutil

import pytest
import torch
from runs import CallLog, same_latents
from safetensors.torch import load_file

from minip2p import LocalBlend, SiteFilter, explicit, load
from minip2p.io.files import shipped_weights
from minip2p.io.tensors import layout_bytes
from minip2p.sampling.qk_cache import CachePolicy, cache_layout
from minip2p.sampling.record import record_run
from minip2p.sampling.settings import RunSettings

SOURCE, STEPS = "a cat and a house on grass", 4
TARGETS = ["a dog and a house on grass", "a cat and a house on grass at night"]
SETTINGS = dict(seed=5, steps=STEPS, size=(64, 72))
ALL_STEPS = dict(self_replace=1.0)  # cross_replace is 1.0 by default


@pytest.fixture(scope="module")
def recorded(model):
    return model.record(SOURCE, **SETTINGS, **ALL_STEPS)


def layout_of(cache):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in cache.tensors.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(cross_replace=1.0, self_replace=1.0),
        dict(local_blend=LocalBlend("house", start=0)),
        dict(reweight={"house": 2}),
    ],
)
def test_streamed_recorded_and_opened_runs_edit_to_the_same_bits(model, recorded, tmp_path, options):
    streamed = model.edit(SOURCE, TARGETS, **SETTINGS, **options)
    source = streamed[0].source_run.finish()
    recorded.save(tmp_path / "saved.safetensors")
    in_file = model.record(SOURCE, **SETTINGS, **ALL_STEPS, file=tmp_path / "recorded.safetensors")
    opened = [model.open(tmp_path / name) for name in ("saved.safetensors", "recorded.safetensors")]
    for run in (recorded, in_file, *opened):
        log = CallLog()
        edits = model.counting(log).edit(run, TARGETS, **options)
        assert same_latents(run, source) and all(map(same_latents, edits, streamed))
        assert log.rows == 2 * STEPS * 2 - 1  # the source did not run


def test_recording_a_run_equals_recording_while_sampling(model, recorded):
    later = model.record(model.generate(SOURCE, **SETTINGS), **ALL_STEPS)
    assert later.qk_cache.tensors.keys() == recorded.qk_cache.tensors.keys()
    assert all(torch.equal(later.qk_cache.tensors[name], t) for name, t in recorded.qk_cache.tensors.items())
    assert same_latents(later, recorded) and later.seed == recorded.seed


def test_a_record_has_the_tensors_of_its_layout(model, recorded):
    policy = CachePolicy((0, STEPS), (0, STEPS), 1024)
    assert layout_of(recorded.qk_cache) == cache_layout(
        model.unet, (8, 9), 77, STEPS, policy=policy, dtype=torch.float32
    )


def test_an_edit_computes_what_was_not_recorded(model):
    partial = model.record(SOURCE, **SETTINGS, cross_replace=0.5, self_replace=0.25)  # cross at 2 steps, self at 1
    log = CallLog()
    counted = model.counting(log)
    short = counted.edit(partial, TARGETS[0], cross_replace=0.5, self_replace=0.25)
    assert log.rows == 2 * STEPS
    log.calls.clear()
    options = dict(cross_replace=0.8, self_replace=0.5)  # reads 4 steps, of which the first is recorded
    longer = counted.edit(partial, TARGETS[0], **options)
    assert log.rows == 2 * STEPS + 2 * 3
    assert same_latents(longer, model.edit(SOURCE, TARGETS[0], **SETTINGS, **options))
    assert not same_latents(longer, short)


def test_a_record_of_some_sites_serves_edits_of_these_sites(model, recorded):
    sites = SiteFilter(places=("up",), strides=(1, 2))
    partial = model.record(SOURCE, **SETTINGS, **ALL_STEPS, sites=sites)
    assert {name.split(".")[0] for name in partial.qk_cache.tensors} == {"up"}
    assert layout_bytes(layout_of(partial.qk_cache)) < layout_bytes(layout_of(recorded.qk_cache))
    log = CallLog()
    counted = model.counting(log)
    edit = counted.edit(partial, TARGETS[0], sites=sites)
    assert log.rows == 2 * STEPS and same_latents(edit, model.edit(recorded, TARGETS[0], sites=sites))
    assert same_latents(counted.edit(partial, TARGETS[0]), model.edit(recorded, TARGETS[0]))
    assert log.rows > 2 * 2 * STEPS  # other sites were wanted, so the source ran


def test_a_record_in_bfloat16_is_half_as_large_and_close(model, recorded):
    half = model.record(SOURCE, **SETTINGS, **ALL_STEPS, dtype=torch.bfloat16)
    assert 2 * layout_bytes(layout_of(half.qk_cache)) == layout_bytes(layout_of(recorded.qk_cache))
    difference = model.edit(half, TARGETS[0]).latents - model.edit(recorded, TARGETS[0]).latents
    assert 0 < difference.square().mean().sqrt() < 0.05 * recorded.latents[-1].std()


def test_only_floating_point_dtypes_can_be_recorded(model):
    with pytest.raises(ValueError, match="cannot be kept as torch.int8, only as a dtype of floating-point numbers"):
        model.record(SOURCE, steps=1, dtype=torch.int8)


def test_a_budget_is_checked_before_the_run_and_a_file_needs_none(model, tmp_path):
    log = CallLog()
    counted = model.counting(log)
    with pytest.raises(ValueError, match=r"the record would take 1.0 MB of memory, its budget is 0.5: give a larger"):
        counted.record(SOURCE, steps=2, budget=5e5)
    assert not log.calls
    run = counted.record(SOURCE, steps=2, budget=5e5, file=tmp_path / "run.safetensors")
    assert isinstance(run.latents, torch.Tensor) and (tmp_path / "run.safetensors").stat().st_size > 9e5


def test_an_interrupted_record_leaves_no_file(model, tmp_path):
    def interrupt_second_step(steps):
        for number, step in enumerate(steps):
            if number == 1:
                raise KeyboardInterrupt
            yield step

    start = model.prepare(SOURCE, RunSettings(**SETTINGS))
    with pytest.raises(KeyboardInterrupt):
        record_run(
            model.components,
            start,
            CachePolicy((0, STEPS), (0, 0), 0),
            dtype=torch.float32,
            budget=0,
            file=tmp_path / "run.safetensors",
            progress=interrupt_second_step,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(dtype="float16"), "a record has a torch dtype and a budget in bytes"),
        (dict(budget="x"), "a budget in bytes"),
        (dict(budget=float("nan")), "a budget in bytes"),
        (dict(budget=-1), "a budget in bytes"),
        (dict(sites="down"), "sites must be a SiteFilter, not 'down'"),
        (dict(sites=SiteFilter(places=("left",))), "places must be some of"),
        (dict(self_max_queries="x"), "self_max_queries must be a whole number"),
        (dict(self_max_queries=-1), "self_max_queries must be a whole number"),
        (dict(cross_replace=2), "the steps of cross_replace are shares"),
        (dict(self_replace=2), "the steps of self_replace are shares"),
    ],
)
def test_options_of_a_record_that_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message) as error:
        model.record(SOURCE, steps=1, **options)
    assert "\n" not in str(error.value)


def test_a_record_runs_with_the_attention_of_its_source(model):
    doubled = explicit(lambda probs, site: 2 * probs)
    settings = dict(seed=5, steps=2, size=(64, 72))
    run = model.record(SOURCE, **settings, attend=doubled)
    assert same_latents(run, model.generate(SOURCE, **settings, attend=doubled))
    assert not same_latents(run, model.generate(SOURCE, **settings))


def test_a_custom_attention_can_be_recorded_in_memory_but_not_in_a_file(model, tmp_path):
    roll = explicit(lambda probs, site: probs.roll(1, -1))
    run = model.generate(SOURCE, steps=1, size=(64, 72), attend=roll)
    log = CallLog()
    with pytest.raises(ValueError, match="has an attention function of its own, which no file can hold"):
        model.counting(log).record(run, file=tmp_path / "x")
    assert not log.calls and not list(tmp_path.iterdir())
    assert same_latents(model.edit(model.record(run), SOURCE), run)


def test_a_record_is_not_written_over_the_models_weights(tmp_path):
    folder = shutil.copytree(shipped_weights("tiny"), tmp_path / "tiny")
    log = CallLog()
    pipe = load(folder).counting(log)
    weights = next(iter(pipe.origin.files.values()))
    before = weights.read_bytes()
    with pytest.raises(ValueError, match=weights.name):
        pipe.record(SOURCE, steps=1, size=(64, 72), file=weights)
    assert weights.read_bytes() == before and not log.calls


def test_at_guidance_0_there_is_no_attention_to_record(model, tmp_path):
    settings = dict(steps=2, size=(64, 72), guidance_scale=0)
    run = model.record(SOURCE, **settings, file=tmp_path / "run.safetensors")
    assert not run.qk_cache.tensors and load_file(tmp_path / "run.safetensors").keys() == {"latents"}
    streamed = model.edit(SOURCE, TARGETS[0], **settings, local_blend="house")
    assert same_latents(model.edit(run, TARGETS[0], local_blend="house"), streamed)
    assert not streamed.blend_mask.any()


def test_records_of_sizes_that_the_strides_do_not_divide(model):
    run = model.record(SOURCE, steps=2, size=(40, 72), **ALL_STEPS)
    assert same_latents(model.edit(run, TARGETS[0]), model.edit(SOURCE, TARGETS[0], steps=2, size=(40, 72)))
