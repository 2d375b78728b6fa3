"""Null-text inversion, compared with the published procedure run with diffusers:

    python benchmarks/invert.py [--model FOLDER] [--steps N] [--inner N]

Both sides do a DDIM inversion of the conditional branch, and then the same number of updates by Adam at each step,
without early stopping.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    diffusers_pipeline,
    in_new_process,
    make_parser,
    peak_memory_mb,
    print_figures,
    time_in_turn,
    training_side,
)

import minip2p
from minip2p.pipeline import Pipeline

PROMPT, GUIDANCE = "a cat on the beach", 7.5


def random_picture(pipe: Pipeline) -> torch.Tensor:
    """A random picture 3 H W of the size that the model was trained on."""
    side = training_side(pipe)
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def run_minip2p(pipe: Pipeline, steps: int, inner: int) -> torch.Tensor:
    """The last latents of our null-text inversion, 1 c h w."""
    run = pipe.invert(
        random_picture(pipe),
        PROMPT,
        method="null-text",
        steps=steps,
        guidance_scale=GUIDANCE,
        num_inner_steps=inner,
        early_stop_epsilon=0,
        early_stop_epsilon_step=0,
    )
    return run.latents[-1:]


def run_published(pipe: Any, picture: torch.Tensor, steps: int, inner: int) -> torch.Tensor:
    """The last latents, 1 c h w, by the procedure of the published code (Mokady et al. 2022, algorithm 1): the weights
    are not frozen, the conditional prediction is made once a step, and both predictions once more at its end."""
    pipe.scheduler.set_timesteps(steps)
    alphas_cumprod = pipe.scheduler.alphas_cumprod
    interval = pipe.scheduler.config.num_train_timesteps // steps

    def encode_text(text: str) -> torch.Tensor:
        ids = pipe.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return pipe.text_encoder(ids)[0]

    with torch.no_grad():
        cond, uncond = encode_text(PROMPT), encode_text("")
        x = pipe.vae.encode(picture[None]).latent_dist.mean * pipe.vae.config.scaling_factor
        pivots = [x]
        for t in reversed(pipe.scheduler.timesteps):
            eps = pipe.unet(x, t, encoder_hidden_states=cond).sample
            a, b = alphas_cumprod[max(int(t) - interval, 0)], alphas_cumprod[t]
            x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
            pivots.append(x)
    for i, t in enumerate(pipe.scheduler.timesteps):
        uncond = uncond.clone().detach().requires_grad_()
        adam = torch.optim.Adam([uncond], lr=1e-2 * (1 - i / (2 * steps)))
        with torch.no_grad():
            eps_cond = pipe.unet(x, t, encoder_hidden_states=cond).sample
        for _ in range(inner):
            eps_uncond = pipe.unet(x, t, encoder_hidden_states=uncond).sample
            eps = eps_uncond + GUIDANCE * (eps_cond - eps_uncond)
            loss = F.mse_loss(pipe.scheduler.step(eps, t, x).prev_sample, pivots[-i - 2])
            adam.zero_grad()
            loss.backward()
            adam.step()
        with torch.no_grad():
            both = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([uncond, cond])).sample
            x = pipe.scheduler.step(both[:1] + GUIDANCE * (both[1:] - both[:1]), t, x).prev_sample
    return x


def peak_of_one_inversion(folder: Path) -> float:
    """The most memory that an inversion holds, in GB, in a process that has done nothing else."""
    run_minip2p(minip2p.load(folder), 1, 1)
    return peak_memory_mb() / 1e3


def main() -> None:
    parser = make_parser("Null-text inversion, compared with the published procedure", steps=2)
    parser.add_argument("--inner", type=int, default=3, help="updates a step (default 3; published: 10)")
    args = parser.parse_args()
    pipe, diffusers_pipe = minip2p.load(args.model), diffusers_pipeline(args.model, torch.float32)
    picture = random_picture(pipe)
    results: dict[str, torch.Tensor] = {}
    run_published(diffusers_pipe, picture, 1, 1)  # first calls are slower
    run_minip2p(pipe, 1, 1)
    seconds = time_in_turn(
        args.rounds,
        published=lambda: results.update(published=run_published(diffusers_pipe, picture, args.steps, args.inner)),
        minip2p=lambda: results.update(minip2p=run_minip2p(pipe, args.steps, args.inner)),
    )
    difference = float((results["minip2p"] - results["published"]).abs().max())
    ratio, memory = seconds["published"] / seconds["minip2p"], in_new_process(peak_of_one_inversion, args.model)
    print(
        f"{args.steps} steps of {args.inner} updates: published {seconds['published']:.1f} s, "
        f"minip2p {seconds['minip2p']:.1f} s: {ratio:.2f} times as fast; last latents {difference:.1e} apart"
    )
    print(f"memory of an inversion in a process of its own: {memory:.2f} GB")
    print_figures({"null_text": ratio, "null_text_peak_gb": memory, "apart": difference})


if __name__ == "__main__":
    main()
