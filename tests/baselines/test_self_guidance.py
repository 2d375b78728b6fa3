"""Self-guidance: its energies, their gradients, its schedule, and what it does to a run."""

from dataclasses import fields, replace

import pytest
import torch

from minip2p.attention.contract import SiteFilter
from minip2p.baselines.gradients import gradients
from minip2p.baselines.self_guidance import (
    EnergyWeights,
    Reading,
    SelfGuidance,
    appearance,
    centroid,
    normalize,
    self_guided_move,
    shape,
    size,
)
from minip2p.p2p.warp import Move

PROMPT, STEPS = "a pig in the snow", 4
TERMS = [field.name for field in fields(EnergyWeights)]


@pytest.fixture(scope="module")
def run(model):
    return model.generate(PROMPT, seed=2, steps=STEPS)


@pytest.fixture(scope="module")
def guidance(run):
    return SelfGuidance(run, "pig", Move(by=(24, 8), scale=0.8), others=["snow"])


def test_properties_by_hand():
    heat = torch.tensor([[0.0, 2.0], [4.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(normalize(heat), heat / 4, atol=1e-4, rtol=0)
    middle = torch.tensor([[0, 0.5], [1, 0.5]], dtype=torch.float64)  # the sigmoid is symmetric about ½
    torch.testing.assert_close(shape(heat), middle, atol=1e-3, rtol=0)
    x, y = 0.25 * 1 / 2 + 0.75 * 1 / 2, 0.25 * 0.5 / 2 + 0.75 * 1.5 / 2
    torch.testing.assert_close(centroid(heat), torch.tensor([x, y], dtype=torch.float64), atol=1e-3, rtol=0)
    assert float(size(heat)) == pytest.approx(0.5, abs=1e-3)
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)
    assert appearance(heat[None], features).item() == pytest.approx((0.5 * 2 + 3 + 0.5 * 4) / 2, abs=1e-2)


def test_a_shape_is_sharper_than_its_heat_and_has_the_same_extremes():
    heat = torch.linspace(0.1, 0.9, 9).reshape(3, 3)
    out = shape(heat).flatten()
    assert out.min() == 0 and out.max() > 0.999 and out[2] < 0.1 and out[6] > 0.9 and bool((out.diff() > 0).all())


def test_the_gradient_of_each_property_is_that_of_finite_differences():
    heat = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    features = torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    for property_of in (centroid, shape, size):
        assert torch.autograd.gradcheck(property_of, heat)
    assert torch.autograd.gradcheck(lambda features: appearance(heat.detach(), features), features)
    assert torch.autograd.grad(appearance(heat, features).sum(), heat, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_of_each_energy_is_that_of_finite_differences(guidance, run, name):
    """Through the UNet, along the gradient itself: float32, 3 %."""
    alone = replace(guidance, weights=EnergyWeights(**{term: float(term == name) for term in TERMS}))
    source, x = alone.read_source(3), run.latents[2:3].to(run.components.device)
    (gradient,) = gradients(lambda x: [alone.energy(alone.read(3, x), source)], x)
    direction = gradient / gradient.norm()
    above, below = (alone.energy(alone.read(3, x + h * direction), source) for h in (0.02, -0.02))
    assert float(gradient.norm()) > 0 and float((above - below) / 0.04) == pytest.approx(
        float(gradient.norm()), rel=0.03
    )


def test_the_energy_of_the_source_is_that_of_its_shift_and_its_size(guidance):
    source = guidance.read_source(3)
    terms = guidance.terms(source, source)
    assert float(terms["centroid"]) == pytest.approx((24 + 8) / 128 / 2, abs=1e-5)
    sizes = torch.stack([size(heat[0]) for heat in source.maps.values()])
    assert float(terms["size"]) == pytest.approx(float((1 - 0.8**2) * sizes.mean()), abs=1e-5)
    assert float(terms["others"]) == float(terms["appearance"]) == 0
    weighted = 2 * terms["centroid"] + 2 * terms["size"]
    assert float(guidance.energy(source, source)) == pytest.approx(float(weighted), abs=1e-6)


def test_heat_that_moves_with_the_object_has_no_energy():
    """A blob that is moved by two cells of eight is 32 pixels of 128 to the right."""
    heat = torch.zeros(1, 8, 8)
    heat[0, 2:5, 1:4] = 1
    features = torch.ones(3, 8, 8)
    run = type("Run", (), {"picture_size": (128, 128)})
    moved = SelfGuidance(run, "pig", Move(by=(32, 0)))
    before, after = Reading({"site": heat}, features), Reading({"site": heat.roll(2, -1)}, features)
    assert float(moved.energy(after, before)) == pytest.approx(0, abs=1e-4)
    assert float(moved.energy(before, before)) == pytest.approx(2 * 0.25 / 2, abs=1e-4)


def test_the_schedule_is_the_papers(run, guidance):
    """Of 32 steps: the first 6, then every second one, and not the last."""
    long = replace(guidance, run=replace(run, latents=run.latents[:1].expand(33, -1, -1, -1)))
    assert [i for i in range(32) if long.is_guided(i)] == [*range(6), *range(7, 31, 2)]


def test_strength_0_is_the_run_itself_to_the_bit(model, run):
    assert torch.equal(self_guided_move(model, run, "pig", by=(32, 0), strength=0).latents, run.latents)


def test_the_energy_falls_along_the_run(model, run):
    """With a small strength, as along a gradient; without guidance it is that of the shift at every step."""
    by, steps = (28, 0), range(3)
    guidance, moved = SelfGuidance(run, "pig", Move(by)), self_guided_move(model, run, "pig", by=by, strength=100)
    with torch.no_grad():
        guided, plain = (
            [float(guidance.terms(guidance.read(i, x[i : i + 1]), guidance.read_source(i))["centroid"]) for i in steps]
            for x in (each.latents.to(model.device) for each in (moved, run))
        )
    assert plain == pytest.approx([28 / 128 / 2] * 3, abs=1e-4)
    assert guided[0] == plain[0] and max(guided[1:]) < 0.9 * plain[0]


def test_sites_and_words_are_checked(model, run):
    for options, message in (
        ({"sites": SiteFilter(strides=(3,))}, "strides must be some of"),
        ({"others": ["dog"]}, "'dog' is not in the prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            self_guided_move(model, run, "pig", by=(8, 0), **options)
