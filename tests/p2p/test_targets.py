"""The targets of an edit: a plan and a local blend for each prompt, made from the same options."""

import pytest
import torch
from word_heat import SOURCE, TARGET

from minip2p import LocalBlend
from minip2p.attention.contract import SiteFilter
from minip2p.attention.masks import mask_per_stride
from minip2p.p2p.edit_plan import EditPlan
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import latent_size_of
from minip2p.p2p.targets import EditTarget, make_targets


def test_each_prompt_has_a_plan_and_a_blend_state_of_its_own(model):
    start = model.prepare(SOURCE)
    prompts = [TARGET, "a dog on grass", TARGET]
    targets = make_targets(model.components, start, prompts, EditOptions(local_blend=("cat", "dog")))
    assert [target.prompt for target in targets] == prompts
    assert all(isinstance(target.plan, EditPlan) and len(target.plan.self_alpha) == 50 for target in targets)
    assert len({id(target.blend_state) for target in targets}) == 3
    assert all(target.blend_mask is None for target in targets)  # nothing was blended so far
    (plain,) = make_targets(model.components, start, [TARGET], EditOptions())
    assert plain.blend_state is None and plain.blend_mask is None


def test_a_target_without_a_blend_keeps_its_latents():
    source, x = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    assert EditTarget("a cat", None).apply_blend(0, source, x) is x


def test_a_target_with_a_blend_is_blended_and_shows_its_mask(model):
    mask = torch.zeros(16, 16)
    mask[:4] = 1
    options = EditOptions(local_blend=LocalBlend(mask=mask, start=0.0))
    (target,) = make_targets(model.components, model.prepare(SOURCE), [TARGET], options)
    source, x = torch.zeros(1, 4, 16, 16), torch.ones(1, 4, 16, 16)
    assert torch.equal(target.apply_blend(0, source, x), mask.expand_as(x))
    assert torch.equal(target.blend_mask, mask.bool())


def test_a_region_becomes_a_mask_at_every_stride(model):
    region = torch.zeros(128, 128)
    region[:, 40:] = 1
    (target,) = make_targets(model.components, model.prepare(SOURCE), [TARGET], EditOptions(region=region))
    expected = mask_per_stride(region, (16, 16), model.unet.sites)
    assert target.plan.region.masks.keys() == expected.keys() == {1, 2, 4}
    assert all(torch.equal(target.plan.region.masks[stride], m) for stride, m in expected.items())


def test_the_size_of_the_latents_is_that_of_the_run_or_of_its_noise(model):
    start = model.resolve_source(SOURCE, {"latents": torch.zeros(1, 4, 4, 8), "steps": 1})
    assert latent_size_of(start) == (4, 8)
    assert latent_size_of(model.generate(SOURCE, latents=torch.zeros(1, 4, 4, 8), steps=1)) == (4, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sites": SiteFilter(places=("left",))}, "places must be some of ['down', 'mid', 'up'], as a tuple"),
        ({"sites": SiteFilter(heads=(99,))}, "heads must be some of"),
        ({"local_blend": "cow"}, "'cow' is not in the prompt"),
        ({"local_blend": LocalBlend("cat", strides=(8,))}, "no cross-attention has stride 8"),
        ({"cross_replace": {"cow": 0.5}}, "'cow' is not in the prompt"),
    ],
)
def test_options_that_do_not_fit_the_model_or_the_prompts_are_named_in_one_line(model, options, message):
    with pytest.raises(ValueError) as error:
        make_targets(model.components, model.prepare(SOURCE), [TARGET], EditOptions(**options))
    assert message in str(error.value) and "\n" not in str(error.value)
