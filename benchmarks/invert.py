"""Null-text inversion beside the published procedure, run with diffusers:

    python benchmarks/invert.py [--model FOLDER] [--steps N] [--inner N]

Both sides: DDIM inversion by the conditional branch, then as many updates by Adam at each step, none left out.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import alone, diffusers_pipeline, finish, in_turn, options, peak_mb, pixels_of

import minip2p
from minip2p.pipeline import Pipeline

PROMPT, GUIDANCE = "a cat on the beach", 7.5


def picture(model: Pipeline) -> torch.Tensor:
    side = pixels_of(model)
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ours(model: Pipeline, steps: int, inner: int) -> torch.Tensor:
    run = model.invert(
        picture(model),
        PROMPT,
        method="null-text",
        steps=steps,
        guidance_scale=GUIDANCE,
        num_inner_steps=inner,
        early_stop_epsilon=0,
        early_stop_epsilon_step=0,
    )
    return run.latents[-1:]


def theirs(pipe: Any, image: torch.Tensor, steps: int, inner: int) -> torch.Tensor:
    """As the published code goes about it (Mokady et al. 2022, algorithm 1): weights not frozen, the conditional
    prediction once a step, both predictions once more at its end."""
    pipe.scheduler.set_timesteps(steps)
    abars, apart = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.num_train_timesteps // steps

    def words(text: str) -> torch.Tensor:
        ids = pipe.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return pipe.text_encoder(ids)[0]

    with torch.no_grad():
        conditional, empty = words(PROMPT), words("")
        x = pipe.vae.encode(image[None]).latent_dist.mean * pipe.vae.config.scaling_factor
        ideal = [x]
        for t in reversed(pipe.scheduler.timesteps):
            eps = pipe.unet(x, t, encoder_hidden_states=conditional).sample
            a, b = abars[max(int(t) - apart, 0)], abars[t]
            x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
            ideal.append(x)
    for i, t in enumerate(pipe.scheduler.timesteps):
        empty = empty.clone().detach().requires_grad_()
        adam = torch.optim.Adam([empty], lr=1e-2 * (1 - i / (2 * steps)))
        with torch.no_grad():
            eps_c = pipe.unet(x, t, encoder_hidden_states=conditional).sample
        for _ in range(inner):
            eps_u = pipe.unet(x, t, encoder_hidden_states=empty).sample
            led = pipe.scheduler.step(eps_u + GUIDANCE * (eps_c - eps_u), t, x).prev_sample
            loss = F.mse_loss(led, ideal[-i - 2])
            adam.zero_grad()
            loss.backward()
            adam.step()
        with torch.no_grad():
            both = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([empty, conditional])).sample
            x = pipe.scheduler.step(both[:1] + GUIDANCE * (both[1:] - both[:1]), t, x).prev_sample
    return x


def peak_of_one(folder: Path) -> float:
    """The most memory that an inversion has held, GB, in a process that has done nothing else."""
    ours(minip2p.load(folder), 1, 1)
    return peak_mb() / 1e3


def main() -> None:
    parser = options("Null-text inversion beside the published procedure", steps=2)
    parser.add_argument("--inner", type=int, default=3, help="updates a step (default 3; published: 10)")
    given = parser.parse_args()
    model, pipe = minip2p.load(given.model), diffusers_pipeline(given.model, torch.float32)
    made: dict[str, torch.Tensor] = {}
    theirs(pipe, picture(model), 1, 1)  # what a first call alone takes
    ours(model, 1, 1)
    took = in_turn(
        given.rounds,
        theirs=lambda: made.update(theirs=theirs(pipe, picture(model), given.steps, given.inner)),
        ours=lambda: made.update(ours=ours(model, given.steps, given.inner)),
    )
    apart = float((made["ours"] - made["theirs"]).abs().max())
    ratio, memory = took["theirs"] / took["ours"], alone(peak_of_one, given.model)
    print(
        f"{given.steps} steps of {given.inner} updates: published {took['theirs']:.1f} s, "
        f"minip2p {took['ours']:.1f} s: {ratio:.2f} times as fast; last latents {apart:.1e} apart"
    )
    print(f"memory of an inversion in a process of its own: {memory:.2f} GB")
    finish({"null_text": ratio, "null_text_peak_gb": memory, "apart": apart})


if __name__ == "__main__":
    main()
