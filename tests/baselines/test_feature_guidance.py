"""Feature guidance as in DragonDiffusion: its energies, their gradients, and what it does to a run."""

from dataclasses import replace

import pytest
import torch

from minip2p.attention.contract import Site, fused, unconditional_of
from minip2p.baselines.feature_guidance import (
    FeatureGuidance,
    FeatureWeights,
    MemoryBank,
    effect_on_step,
    feature_guided_move,
    similarity_energy,
)
from minip2p.baselines.gradients import gradients
from minip2p.p2p.warp import Move, ObjectEdit, PlacedObject
from minip2p.sampling.sampler import sample
from minip2p.sampling.settings import RunSettings

PROMPT, STEPS = "a pig in the snow", 4


@pytest.fixture(scope="module")
def run(model):
    return model.generate(PROMPT, seed=2, steps=STEPS)


def placed(by, side=128):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[32:80, 24:64] = True
    return PlacedObject(ObjectEdit("pig", "move", Move(by)), mask)


def test_similarities_by_hand():
    assert float(similarity_energy(6.0, torch.tensor([1.0, 0.0]))) == 2.0  # 6 / (1 + 4 · ½)
    assert float(similarity_energy(6.0, torch.zeros(0))) == 0


def test_energies_by_hand(run):
    """Features that point the same way everywhere, and features whose object has moved."""
    guidance = FeatureGuidance(run, placed((16, 0)))
    new, left = guidance.fine.owner >= 0, guidance.fine.hole
    same = torch.tensor([[1.0, 0.0]]).repeat(32 * 32, 1)
    edit, content = guidance.energies([same, same], [same, same])
    assert float(edit) == pytest.approx(4 / 5)  # two levels, ½ · 4 / (1 + 4) each
    assert float(content) == pytest.approx(2 * (0.5 * 6 / 5 + 0.5 * 3 + 0.8 / 5))
    before, after = same.clone(), same.clone()
    before[guidance.placed.mask.reshape(32, 4, 32, 4)[:, 0, :, 0].flatten()] = torch.tensor([0.0, 1.0])
    after[new] = torch.tensor([0.0, 1.0])  # where it goes; what it leaves is as the rest
    edit, content = guidance.energies([after, after], [before, before])
    assert int(left.sum()) == 12 * 4 and float(edit) == pytest.approx(4 / 5)
    assert float(content) == pytest.approx(2 * (0.5 * 6 / 5 + 0.5 * 3 * 0.5 + 0.8 / 5))
    worse, _ = guidance.energies([before, before], [before, before])
    assert float(worse) > float(edit)


@pytest.mark.parametrize("name", ["edit", "content", "contrast", "inpaint"])
def test_the_gradient_of_each_energy_is_that_of_finite_differences(run, name):
    """Through the UNet, along the gradient itself: float32, 2 %."""
    names = ("edit", "content", "contrast", "inpaint")
    weights = FeatureWeights(**{each: float(each == name) for each in names})
    guidance = FeatureGuidance(run, placed((32, 0)), weights=weights)
    source, x = guidance.read_source(2), run.latents[1:2].to(run.components.device)

    def energy(x):
        return sum(guidance.energies(guidance.read(2, x), source))

    (gradient,) = gradients(lambda x: [energy(x)], x)
    direction = gradient / gradient.norm()
    slope = (energy(x + 0.05 * direction) - energy(x - 0.05 * direction)) / 0.1
    assert float(gradient.norm()) > 0 and float(slope) == pytest.approx(float(gradient.norm()), rel=0.02)


def test_features_are_those_of_the_published_levels(run):
    """The last level but two and the last but one, as up_blocks 1 and 2 of the four of Stable Diffusion 1."""
    coarse, fine = FeatureGuidance(run, placed((8, 0))).read_source(2)
    widths = run.components.unet.config.block_out_channels
    assert coarse.shape == (32 * 32, widths[-1]) and fine.shape == (32 * 32, widths[-2])


def test_guidance_acts_on_the_predicted_picture_alone(model):
    """A step with ε + g / effect is the step whose x_0 has ε + g and whose noise is ε."""
    x, eps, g = torch.randn(3, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in model.scheduler.steps(10):
        x0 = model.scheduler.predicted_x0(x, eps + g, step)
        expected = step.alpha_cumprod_prev**0.5 * x0 + (1 - step.alpha_cumprod_prev) ** 0.5 * eps
        torch.testing.assert_close(model.scheduler.step(x, eps + g / effect_on_step(step), step), expected)


def test_the_edit_energy_changes_the_new_place_and_the_content_energy_the_rest(run, device):
    inside = (FeatureGuidance(run, placed((32, 0))).coarse.owner >= 0).reshape(16, 16)
    x, prediction = run.latents[1:2].to(device), torch.zeros(1, 4, 16, 16, device=device)
    for weights, is_changed in (
        (FeatureWeights(content=0, contrast=0, inpaint=0), inside),
        (FeatureWeights(edit=0), ~inside),
    ):
        change = FeatureGuidance(run, placed((32, 0)), weights=weights)(1, x, prediction).cpu()
        assert bool((change[..., is_changed] != 0).any()) and not change[..., ~is_changed].any()


def test_the_first_30_of_50_steps_are_guided_and_the_sum_does_not_depend_on_their_number(run, device):
    def of(steps):
        return FeatureGuidance(replace(run, latents=run.latents[:1].expand(steps + 1, -1, -1, -1)), placed((8, 0)))

    assert [i for i in range(50) if of(50).is_guided(i)] == list(range(30))
    x, zero = run.latents[:1].to(device), torch.zeros(1, 4, 16, 16, device=device)
    changes = [
        effect_on_step(run.components.scheduler.steps(steps)[1]) * of(steps)(1, x, zero).abs().max() * steps
        for steps in (20, 40)
    ]
    assert all(change > 0 for change in changes) and 0.5 < float(changes[0] / changes[1]) < 2


def test_the_objects_noise_is_also_in_its_new_place(run):
    """Two latent pixels to the right, and one down. The rest is what it was."""
    noise = FeatureGuidance(run, placed((16, 8))).first_latents[0]
    source = run.latents[0]
    assert torch.equal(noise[:, 5:11, 5:10], source[:, 4:10, 3:8])
    untouched = torch.ones(16, 16, dtype=torch.bool)
    untouched[5:11, 5:10] = False
    assert torch.equal(noise[:, untouched], source[:, untouched])


def test_all_rows_attend_to_the_sources_conditional_row(run):
    bank = MemoryBank(run, 0.5)
    assert [bank.at(i) is fused for i in range(STEPS)] == [True] * 2 + [False] * 2
    source = bank.read_source(3)
    site, (_, k, v) = next(iter(source.items()))
    q = torch.randn(2, *k.shape[1:], generator=torch.Generator().manual_seed(0)).to(k.device)
    attend = bank.at(3)
    for rows in (attend, unconditional_of(attend)):
        torch.testing.assert_close(rows(q, q, q, site), fused(q, k.expand_as(q), v.expand_as(q)))
    cross = Site("up", 0, True, 1)
    assert torch.equal(attend(q, q, q, cross), fused(q, q, q))


def test_strength_0_is_the_run_with_moved_noise_and_memory_bank_to_the_bit(model, run):
    edit = feature_guided_move(model, run, "pig", placed((32, 0)).mask, by=(32, 0), strength=0)
    noise = FeatureGuidance(run, placed((32, 0))).first_latents
    start = model.prepare(PROMPT, RunSettings(steps=STEPS, latents=noise, attend=MemoryBank(run, 0.1)))
    assert torch.equal(edit.latents, sample(model.components, start).latents)


def test_the_energy_falls_along_the_run(model, run):
    """With a small strength, as along a gradient: below that of the same run without guidance."""
    by, mask = (32, 0), run.mask("pig")
    guidance = FeatureGuidance(run, PlacedObject(ObjectEdit("pig", "move", Move(by)), mask))
    source, energies = guidance.read_source(2), []
    for strength in (4, 0):
        edit = feature_guided_move(model, run, "pig", mask, by=by, strength=strength)
        with torch.no_grad():
            now = guidance.read(2, edit.latents[2:3].to(model.device))
            energies.append(float(sum(guidance.energies(now, source))))
    assert energies[0] < 0.95 * energies[1]


def test_a_mask_without_pixels_is_refused(model, run):
    with pytest.raises(ValueError, match="the mask of 'pig' has no pixels"):
        feature_guided_move(model, run, "pig", torch.zeros(128, 128), by=(8, 0))
