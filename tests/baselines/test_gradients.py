"""What kinds of guidance by gradients share."""

from dataclasses import replace

import pytest
import torch
from runs import CallLog

from minip2p.baselines import feature_guided_move, self_guided_move
from minip2p.baselines.gradients import add_noise_shift, gradients
from minip2p.config import SchedulerConfig
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.sched import DDIMScheduler, split_prediction

MOVES = [
    lambda model, run, **options: self_guided_move(model, run, "cat", **{"by": (8, 0), **options}),
    lambda model, run, **options: feature_guided_move(model, run, "cat", square(), **{"by": (8, 0), **options}),
]
STEPS = 4


def square():
    mask = torch.zeros(64, 72)
    mask[16:48, 16:40] = 1
    return mask


@pytest.fixture(scope="module")
def run(model):
    return model.generate("a cat on the beach", seed=1, steps=STEPS, size=(64, 72))


def test_gradients_by_hand():
    x = torch.tensor([[[[1.0, 2.0]]]])
    square_sum, product = gradients(lambda x: [x.square().sum(), x.prod()], x)
    assert square_sum.flatten().tolist() == [2.0, 4.0] and product.flatten().tolist() == [2.0, 1.0]
    assert not x.requires_grad


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_shift_of_the_noise_is_one_of_the_noise_in_either_type_of_prediction(prediction_type):
    scheduler = DDIMScheduler(SchedulerConfig(prediction_type=prediction_type))
    step = scheduler.steps(10)[3]
    x, prediction, shift = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, after = (
        split_prediction(x, y, step.alpha_cumprod, prediction_type)[0]
        for y in (prediction, add_noise_shift(scheduler, step, prediction, shift))
    )
    torch.testing.assert_close(after - before, shift)
    no_signal = step._replace(alpha_cumprod=0.0)
    assert torch.equal(add_noise_shift(scheduler, no_signal, prediction, shift), prediction)


@pytest.mark.parametrize("move", MOVES)
def test_it_works_where_the_caller_has_switched_gradients_off(model, run, move):
    with torch.inference_mode():
        source = replace(run, latents=run.latents.clone())
        moved = move(model, source)
    assert not moved.latents.requires_grad and (moved.latents - run.latents).abs().max() > 0.1


@pytest.mark.parametrize("move, source_rows", list(zip(MOVES, (0, 4), strict=True)))
def test_rows_are_those_of_the_run_and_two_for_each_guided_step(model, run, move, source_rows):
    """Of 4 steps, 2 are guided by self-guidance and 3 by features, whose memory bank reads the source at each."""
    log, guided = CallLog(), {0: 2, 4: 3}[source_rows]
    move(model.counting(log), run)
    assert log.rows == 2 * STEPS + 2 * guided + source_rows


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(
    "change, options, message",
    [
        ({}, {"strength": -1}, "the strength of guidance must be a number from 0 on, not -1"),
        ({}, {"by": (200, 0)}, "out(side)? of the picture"),
        ({}, {"by": 8}, "an object is moved by"),
        ({"conditioning": Conditioning(variance_noise=torch.zeros(STEPS, 4, 8, 9))}, {}, "noise of their own"),
        ({"conditioning": Conditioning(image=ImageConditioning(torch.zeros(1, 4, 8, 9)))}, {}, "follows a picture"),
    ],
)
def test_what_is_refused(model, run, move, change, options, message):
    with pytest.raises(ValueError, match=message):
        move(model, replace(run, **change), **options)


@pytest.mark.parametrize("move", MOVES)
def test_a_prompt_is_no_source(model, move):
    with pytest.raises(ValueError, match="give a run as the source, not a prompt"):
        move(model, "a cat on the beach")
