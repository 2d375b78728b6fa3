"""What runs show of themselves at each step."""

import numpy as np
import pytest
import torch
from runs import CallLog, distance, same_latents
from word_heat import SOURCE, TARGET

from minip2p import LocalBlend
from minip2p.io.images import to_pil
from minip2p.sampling.preview import StepPreview
from minip2p.sched import split_prediction

SMALL = dict(seed=3, steps=4, size=(64, 72))
HAT = "a hat and a house on grass"


def test_a_run_shows_the_x0_of_each_step_and_is_the_same_run(model):
    """x_0 by hand from the UNet's noise; within 1e-4, as the two rows run one by one here."""
    previews, log = [], CallLog()
    run = model.counting(log).generate(SOURCE, **SMALL, on_step=previews.append)
    assert log.calls == [2] * 4 and same_latents(run, model.generate(SOURCE, **SMALL))
    assert [(preview.step, preview.steps) for preview in previews] == [(n, 4) for n in range(4)]
    context = model.text(["", SOURCE]).tokens
    for x, step, preview in zip(run.latents.to(model.device), model.scheduler.steps(4), previews, strict=False):
        eps_u, eps_c = (model.unet(x[None], step.t, words[None]) for words in context)
        eps = eps_u + model.default_guidance * (eps_c - eps_u)
        _, x0 = split_prediction(x[None], eps, step.alpha_cumprod, "epsilon")
        assert preview.predicted_x0.shape == (1, 4, 8, 9) and distance(preview.predicted_x0, x0) < 1e-4


def test_the_pictures_of_a_preview_are_decoded_when_they_are_read(model):
    latents = torch.randn(2, 4, 8, 9).to(model.device)
    broken = StepPreview(model.components, 0, 1, torch.full_like(latents, float("nan")))
    with pytest.raises(ValueError, match="the decoded picture is not finite"):
        broken.images  # noqa: B018, making it decodes nothing
    images = StepPreview(model.components, 0, 1, latents).images
    for image, picture in zip(images, model.components.decode(latents).cpu(), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(to_pil(picture)))


def test_an_edit_shows_a_row_for_each_target_in_their_order(model):
    """Targets that share a row, and more targets than a batch has rows."""
    run = model.generate(SOURCE, **SMALL)
    previews, log = [], CallLog()
    targets = [TARGET, HAT, TARGET, SOURCE, *(f"a {word} on grass" for word in "cow pig car cake lamp lion".split())]
    edits = model.counting(log).edit(run, targets, on_step=previews.append)
    rows = log.rows
    assert rows and [preview.predicted_x0.shape[0] for preview in previews] == [10] * 4
    silent = model.counting(log).edit(run, targets)
    assert log.rows == 2 * rows and all(same_latents(a, b) for a, b in zip(edits, silent, strict=True))
    for n, edit in enumerate(edits):
        for i, preview in enumerate(previews):
            torch.testing.assert_close(preview.predicted_x0[n : n + 1], edit.predicted_x0(i), rtol=0, atol=1e-3)
    assert torch.equal(previews[3].predicted_x0[0], previews[3].predicted_x0[2])
    assert not torch.equal(previews[0].predicted_x0[0], previews[0].predicted_x0[1])


def test_a_preview_is_of_the_prediction_before_the_blend(model):
    run = model.generate(SOURCE, **SMALL)
    previews = []
    nothing = LocalBlend("cat", "dog", threshold=1, start=0)  # no pixel is above the maximum
    edit = model.edit(run, TARGET, local_blend=nothing, cross_replace=0, self_replace=0, on_step=previews.append)
    assert torch.equal(edit.latents, run.latents)
    assert distance(previews[0].predicted_x0, run.predicted_x0(0)) > 0.01


def test_skipped_steps_are_not_shown(model):
    photo = model.invert("tests/data/renders/00.png", "a blue umbrella", method="edit-friendly", steps=10)
    previews = []
    model.edit(photo, "a red umbrella", on_step=previews.append)
    skipped = photo.conditioning.skip_steps
    assert skipped and [preview.step for preview in previews] == list(range(skipped, 10))


def test_raising_in_on_step_cancels_a_run(model):
    class Cancelled(Exception):
        pass

    def cancel(preview):
        if preview.step == 1:
            raise Cancelled

    log = CallLog()
    with pytest.raises(Cancelled):
        model.counting(log).generate(SOURCE, **SMALL, on_step=cancel)
    assert log.calls == [2, 2]
