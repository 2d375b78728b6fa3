"""Runs on another device than the CPU: no tensor is on the wrong one, the results are the CPU's, and steps do not wait.

The device is a fake one (tests/support/fake_device.py), which any machine has. tools/measure_on_gpu.sh does the same on
a GPU.
"""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from fake_device import FakeTensor, fake_device

import minip2p
from minip2p import AttentionStore, LocalBlend, explicit
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.sampling.guidance import READ_EVERY, FiniteCheck

SOURCE, TARGET, REFINED = "a cat on the beach", "a dog on the beach", "a red cat on the beach"
REFINED_DOG = "a red dog on the beach"
START = dict(seed=1, steps=2, size=(64, 64))
HALF = torch.zeros(64, 64)
HALF[:32] = 1


@pytest.fixture(scope="module")
def other():
    """The embedded model on the fake device."""
    with fake_device():
        return minip2p.load(device="meta")


def difference(run, model, other):
    """The largest difference of the tensors that a function returns for two models."""
    expected = run(model)
    with fake_device():
        return float((run(other) - expected).abs().max())


@cache
def source(pipe):
    """The run that the edits of a model share."""
    return pipe.generate(SOURCE, **START)


def invert(pipe, method):
    options = {"num_inner_steps": 2} if method == "null-text" else {}
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return pipe.invert(photo, SOURCE, method=method, steps=2, **options)


EDITS = {
    "fused": {},
    "explicit": {"explicit": True},
    "local blend": {"local_blend": ("cat", "dog")},
    "sharp blend": {
        "local_blend": LocalBlend("cat", "dog", threshold="otsu", self_attention_hops=1, without_source="beach")
    },
    "mask and region": {"local_blend": LocalBlend(mask=HALF, start=(0, 0.5)), "region": HALF},
    "reweight": {"reweight": {"dog": 2.0}, "sites": minip2p.SiteFilter(heads=(0,))},
    "store": {"attend": explicit(AttentionStore())},
    "move": {"move": {"cat": (17, 8)}, "resize": {"cat": 1.3}},
    "remove": {"remove": "cat", "explicit": True},
}


@pytest.mark.parametrize("options", EDITS.values(), ids=EDITS)
def test_an_edit_is_the_cpus(options, cpu_model, other):
    assert difference(lambda pipe: pipe.edit(source(pipe), TARGET, **options).latents, cpu_model, other) < 1e-4


RUNS = {
    "picture": lambda pipe: source(pipe).picture,
    "maps": lambda pipe: source(pipe).maps(["cat", "beach"]),
    "mask": lambda pipe: source(pipe).mask("cat", self_attention_hops=1).float(),
    "edits of a prompt": lambda pipe: pipe.edit(SOURCE, [TARGET, REFINED], **START)[1].source_run.finish().latents,
    "edit of an edit": lambda pipe: pipe.edit(pipe.edit(source(pipe), TARGET), REFINED).latents,
    "record": lambda pipe: pipe.edit(pipe.record(source(pipe)), TARGET, local_blend="beach").latents,
    "live": lambda pipe: pipe.live(SOURCE, **START).edit(TARGET).latents,
    "refined latents": lambda pipe: (
        pipe.invert(2 * HALF.expand(3, 64, 64) - 1, SOURCE, steps=1, vae_refine_steps=1).latents
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_run_is_the_cpus(run, cpu_model, other):
    assert difference(run, cpu_model, other) < 1e-4


@pytest.mark.parametrize("method", ["direct", "proximal", "null-text", "virtual"])
def test_an_inversion_and_its_edit_are_the_cpus(method, cpu_model, other):
    assert difference(lambda pipe: pipe.edit(invert(pipe, method), TARGET).latents, cpu_model, other) < 1e-4


def test_a_run_file_is_read_on_the_device(cpu_model, other, tmp_path):
    def run(pipe):
        file = tmp_path / f"{pipe.device}.safetensors"
        pipe.record(source(pipe), file=file)
        return pipe.edit(pipe.open(file), TARGET).latents

    assert difference(run, cpu_model, other) < 1e-4


def test_a_tensor_that_is_on_the_wrong_device_is_an_error(other):
    assert isinstance(other.unet.conv_in.weight, FakeTensor)
    misplaced = explicit(lambda probs, site: probs * torch.ones(probs.shape[-1]))
    with fake_device(), pytest.raises(RuntimeError, match="on different devices"):
        other.generate(SOURCE, attend=misplaced, **START)


FADING = {"cross_replace": (0, 0.2, 1), "self_replace": (0, 0.2, 1)}  # so that the matrices of each step differ
WORDS = LocalBlend("cat", "dog", threshold=(0.2, 0.4), without_source="beach", without_threshold="80%", start=(0, 0.5))
STEPPED = {
    "edit": {},
    "reweight": {"reweight": {"beach": 2.0}},
    "explicit": {"explicit": True},
    "local blend": {"local_blend": WORDS},
    "propagated blend": {"local_blend": LocalBlend("cat", "dog", self_attention_hops=1)},
    "mask and region": {"local_blend": LocalBlend(mask=HALF), "region": HALF, "sites": minip2p.SiteFilter(heads=(0,))},
}


def waits_of(run):
    """Line of minip2p -> how often the CPU waits for the device in a run."""
    with fake_device() as operations:
        run()
    return operations.waits


@pytest.mark.parametrize("options", STEPPED.values(), ids=STEPPED)
def test_no_step_of_an_edit_waits_for_the_device(options, other):
    def edit(steps):
        other.edit(SOURCE, REFINED_DOG, seed=1, steps=steps, size=(64, 64), **FADING, **options)

    few, many = (waits_of(lambda n=n: edit(n)) for n in (2, 5))
    assert few and many == few  # those of the run's begin and end


def test_a_run_waits_once_in_ten_steps(other):
    few, many = (
        waits_of(lambda n=n: other.generate(SOURCE, seed=1, steps=n, size=(64, 64))) for n in (2, 2 + 2 * READ_EVERY)
    )
    ((line, count),) = (many - few).items()
    assert line.startswith("guidance.py: results =") and count == 2 and READ_EVERY == 10


def test_latents_that_are_not_finite_are_seen_within_ten_steps_and_the_first_step_is_named():
    check = FiniteCheck(SimpleNamespace(networks={}, origin=CheckpointOrigin()))
    with fake_device():
        good, bad = torch.zeros(1, 4, 2, 2, device="meta"), torch.full((1, 4, 2, 2), torch.nan, device="meta")
        for first, forward in ((0, 1), (30, -1)):
            assert check(good, first) is good
            check(bad, first + forward), check(good, first + 8 * forward)
            with pytest.raises(ValueError, match=f"the latents are not finite after step {first + forward + 1};"):
                check(good, first + 9 * forward)
        check(bad, 3)
        with pytest.raises(ValueError, match="after step 4;"):
            check.finish()
        check.finish()  # all is read


def test_what_the_cpu_waits_for_is_counted():
    def read():
        x = torch.arange(3, device="meta")
        x.to(torch.float32), x[:, None], x * 2, torch.full((), 3, device="meta")
        torch.ones(3).to("meta", non_blocking=True)
        assert not operations.waits
        bool(x.any()), int(x[0]), x.cpu(), torch.ones(3).to("meta"), x[torch.tensor([1])], x[x > 1]
        torch.tensor([1.0], device="meta"), x.nonzero()

    with fake_device() as operations:
        read()
    assert operations.waits == {"elsewhere": 8}
