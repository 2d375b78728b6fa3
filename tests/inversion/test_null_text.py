"""Null-text inversion: the published algorithm, its stopping rule, its cost, and what it does where it diverges."""

from dataclasses import replace

import diffusers
import pytest
import torch
import torch.nn.functional as F
from runs import CallLog, distance, mean_squared_error
from torch.optim.optimizer import register_optimizer_step_pre_hook

import minip2p
from minip2p.errors import Notice
from minip2p.inversion.ddim import ddim, ddim_inversion
from minip2p.inversion.null_text import NullTextStep, null_text
from minip2p.io.files import shipped_weights
from minip2p.sampling.guidance import guided_noise
from minip2p.sampling.sampler import sample

NO_STOP = dict(early_stop_epsilon=0, early_stop_epsilon_step=0)
QUICK = dict(num_inner_steps=4, learning_rate=0.05)  # for runs of two or three steps


def null_text_as_published(model, start, num_inner_steps):
    """Mokady et al. 2022, algorithm 1, as their code has it, without stopping early: diffusers' scheduler, Adam."""
    scheduler = diffusers.DDIMScheduler.from_pretrained(shipped_weights("tiny") / "scheduler")
    scheduler.set_timesteps(start.steps)
    pivots = ddim_inversion(model.components, start)
    words, empty = model.text(start.prompt).tokens, model.text("").tokens
    x, embeddings = pivots[:1], []
    for i, t in enumerate(scheduler.timesteps):
        empty = empty.clone().detach().requires_grad_()
        adam = torch.optim.Adam([empty], lr=1e-2 * (1 - i / (2 * start.steps)))
        with torch.no_grad():
            eps_cond = model.unet(x, int(t), words)

        def guided_step(x=x, eps_cond=eps_cond, t=t, empty=empty):
            eps_uncond = model.unet(x, int(t), empty)
            eps = eps_uncond + start.guidance_scale * (eps_cond - eps_uncond)
            return scheduler.step(eps, t, x).prev_sample

        for _ in range(num_inner_steps):
            loss = F.mse_loss(guided_step(), pivots[i + 1 : i + 2])
            adam.zero_grad()
            loss.backward()
            adam.step()
        embeddings.append(empty.detach())
        with torch.no_grad():
            x = guided_step()
    return torch.cat(embeddings).cpu(), x.cpu()


@pytest.fixture(scope="module")
def two_updates(model, start):
    """The inversion with two updates at each step."""
    return null_text(model.components, start, num_inner_steps=2, **NO_STOP)


def test_the_embeddings_and_latents_are_those_of_the_published_code(model, start, two_updates):
    """Without stopping early, 2 updates. Float32, 1e-4 of the latents, and 2e-3 of the embeddings: Adam takes steps of
    full length from small gradients as well, so that their rounding shows. Measured: 9e-6 and 8e-4."""
    embeddings, last = null_text_as_published(model, start, 2)
    run = two_updates
    of_embeddings = distance(run.conditioning.uncond_embeddings.tokens, embeddings)
    of_latents = distance(run.latents[-1:], last)
    print(f"null-text: embeddings {of_embeddings:.1e}, latents {of_latents:.1e} from the published")
    assert of_embeddings < 2e-3 and of_latents < 1e-4


def test_a_run_has_one_embedding_a_step_and_no_graph(start, two_updates):
    embeddings = two_updates.conditioning.uncond_embeddings
    assert embeddings.tokens.shape == (start.steps, 77, 128) and embeddings.pooled is None
    assert not embeddings.tokens.requires_grad and not two_updates.latents.requires_grad


def test_it_comes_nearer_than_ddim_and_its_embeddings_lead_there(model, start_of_render):
    start, log = start_of_render(model, steps=3), CallLog()
    run = null_text(model.counting(log).components, start, **QUICK)
    assert log.rows <= start.steps * (1 + 1 + 5)  # inversion, conditional row, 4 updates and the last prediction
    errors = [mean_squared_error(each, start.noise) for each in (run, ddim(model.components, start))]
    print("null-text: mean squared error {:.4f}, DDIM {:.4f}".format(*errors))
    assert errors[0] < errors[1] / 1.4
    sampled = sample(model.components, replace(start, noise=run.latents[:1], conditioning=run.conditioning))
    assert distance(sampled.latents, run.latents) < 1e-4


def test_within_inference_mode_it_computes_the_same(model, start, two_updates):
    with torch.inference_mode():
        run = null_text(model.components, replace(start, noise=start.noise.clone()), num_inner_steps=2, **NO_STOP)
    assert torch.equal(run.conditioning.uncond_embeddings.tokens, two_updates.conditioning.uncond_embeddings.tokens)
    assert torch.equal(run.latents, two_updates.latents)


def test_it_stops_a_step_as_soon_as_the_pivot_is_near(model, start):
    """At guidance 1 the unconditional embedding has no effect and the pivot is met at once: one row a step."""
    log = CallLog()
    components = model.counting(log).components
    null_text(components, replace(start, guidance_scale=1.0), early_stop_epsilon=10.0)
    assert log.rows == start.steps * 3


def test_it_demands_less_of_later_steps(model, start):
    """The bound is early_stop_epsilon + early_stop_epsilon_step · i: here only the first step is optimised."""
    log = CallLog()
    components = model.counting(log).components
    null_text(components, start, num_inner_steps=2, early_stop_epsilon=0, early_stop_epsilon_step=100.0)
    assert log.rows == start.steps + start.steps + 3 + (start.steps - 1)


def test_where_it_diverges_it_warns_and_uses_the_best_embedding(model, start):
    with pytest.warns(
        Notice, match="null-text inversion diverged at step 1, .*; a lower guidance scale or"
    ) as warnings:
        run = null_text(model.components, start, learning_rate=100.0, num_inner_steps=2)
    assert len(warnings) == 1 and "\n" not in str(warnings[0].message)
    without_updates = null_text(model.components, start, num_inner_steps=0)
    errors = [mean_squared_error(each, start.noise) for each in (run, without_updates)]
    assert errors[0] <= errors[1] * 1.5 and torch.isfinite(run.latents).all()


def first_step(model, start, **options):
    """The optimisation of the first step."""
    pivots, step = ddim_inversion(model.components, start), model.scheduler.steps(start.steps)[0]
    words, x = model.text(start.prompt), pivots[:1]
    eps = guided_noise(model.components, x, step.t, words, words, guidance_scale=1.0)
    return NullTextStep(
        model.components, x, step, eps, pivot=pivots[1:2], guidance_scale=start.guidance_scale, **options
    )


def test_a_step_returns_what_its_embedding_leads_to_and_changes_no_input(model, start):
    optimisation, embedding = first_step(model, start), model.text("")
    updated, x, is_worse = optimisation.run(embedding, num_inner_steps=2, learning_rate=0.01, stop=0.0)
    assert not is_worse and torch.equal(embedding.tokens, model.text("").tokens)
    assert not torch.equal(updated.tokens, embedding.tokens) and not updated.tokens.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(optimisation.guided_step(updated), x)


def saved_bytes(function):
    """What `function()` returns, and the bytes that it saves for the backward pass."""
    sizes = {}

    def save(tensor):
        address = tensor.untyped_storage().data_ptr() or id(tensor)  # a fake device has no addresses
        sizes[address] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = function()
    return result, sum(sizes.values())


def test_gradient_checkpointing_saves_less_and_computes_the_same(model, start, two_updates):
    tokens = model.text("").tokens.float().requires_grad_()
    embedding = replace(model.text(""), tokens=tokens)
    results = []
    for flag in (False, True):
        optimisation = first_step(model, start, gradient_checkpointing=flag)
        x, size = saved_bytes(lambda optimisation=optimisation: optimisation.guided_step(embedding))
        (gradient,) = torch.autograd.grad(x.square().sum(), tokens)
        results.append((x, size, gradient))
    (x, size, gradient), (x_checkpointed, size_checkpointed, gradient_checkpointed) = results
    assert torch.equal(x, x_checkpointed) and torch.equal(gradient, gradient_checkpointed)
    assert gradient.abs().max() > 0 and size_checkpointed < 0.5 * size
    run = null_text(model.components, start, num_inner_steps=2, gradient_checkpointing=True, **NO_STOP)
    assert torch.equal(run.latents, two_updates.latents)


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=str)
def half(request, device):
    """The model in 16 bits."""
    return minip2p.load(dtype=request.param, device=device)


def test_it_learns_in_16_bits(half, start_of_render):
    start = start_of_render(half, steps=2)
    runs = [null_text(half.components, start, **QUICK | {"num_inner_steps": n}) for n in (0, 4)]
    errors = [mean_squared_error(run, start.noise) for run in runs]
    print(f"null-text in {half.dtype}: mean squared error {errors[1]:.4f}, without updates {errors[0]:.4f}")
    assert errors[1] < errors[0] / 1.4


def test_gradients_do_not_vanish_in_16_bits_near_the_pivot(model, half, start_of_render):
    """They are those of float32. Without the scale of the loss, 70 % of them are zero in float16."""
    start = start_of_render(model, steps=4)
    gradient, expected = (gradient_near_the_pivot(each, start) for each in (half, model))
    similarity = F.cosine_similarity(gradient.flatten(), expected.flatten(), 0)
    print(f"null-text: cosine similarity of the gradients in {half.dtype} {similarity:.4f}")
    assert (gradient == 0).float().mean() < 0.01
    assert similarity > 0.999


def gradient_near_the_pivot(model, start):
    """What the optimiser gets for the tokens where the latents are 1e-3 away from the pivot, as late in a step."""
    optimisation, gradients = first_step(model, start), []
    embedding = model.text("").to(torch.float32)
    with torch.no_grad():
        x = optimisation.guided_step(embedding)
    pivot = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)

    def store_gradient(optimiser, *_):
        gradients.append(optimiser.param_groups[0]["params"][0].grad.clone())

    hook = register_optimizer_step_pre_hook(store_gradient)
    try:
        replace(optimisation, pivot=pivot).run(embedding, num_inner_steps=1, learning_rate=1e-4, stop=0.0)
    finally:
        hook.remove()
    return gradients[0]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_inner_steps=-1), "num_inner_steps must be a whole number from 0 on, not -1"),
        (dict(num_inner_steps=1.5), "num_inner_steps must be a whole number"),
        (dict(learning_rate="x"), "learning_rate must be a number from 0 on, not 'x'"),
        (dict(learning_rate=-1), "learning_rate must be a number from 0 on"),
        (dict(early_stop_epsilon=float("nan")), "early_stop_epsilon must be a number"),
        (dict(early_stop_epsilon_step=None), "early_stop_epsilon_step must be a number"),
    ],
)
def test_options_that_are_refused(model, start, options, message):
    with pytest.raises(ValueError, match=message):
        null_text(model.components, start, **options)
