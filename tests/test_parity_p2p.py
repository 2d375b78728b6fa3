"""Our edit against the published Prompt-to-Prompt: here written once more, from p2p-spec.md, on diffusers.

Nothing of minip2p is in this second implementation: diffusers' pipeline and scheduler, an attention processor, and the
mappers that the published code itself returned (tests/data).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from minip2p import LocalBlend

DATA = Path(__file__).parent / "data"
STEPS, SEED = 12, 3
CROSS, SELF, SELF_PIXELS = 0.4, 0.6, 32 * 32
SWAP, REFINE = 288, 369  # pairs of tests/data at which the published code's mappers have their defects


@dataclass
class Published:
    """P2P as published, for [unconditional × 2, conditional × 2] with the source in row 2 and the target in row 3.

    mapper: source tokens × target tokens. kept: 1 where a refinement takes the source's map. equalizer: c, or None.
    words, without: for source and target, the tokens of the words to blend and to keep out; None: no blending.
    """

    mapper: torch.Tensor
    kept: torch.Tensor
    equalizer: torch.Tensor
    words: torch.Tensor | None = None
    without: torch.Tensor | None = None
    threshold: float = 0.3
    start: float = 0.2
    step: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def attention(self, probs, name, cross):
        """What a processor applies instead of the four rows' maps b h i j; it edits the last row."""
        source, target = probs[2], probs[3]
        if cross:
            alpha = float(self.step < int(CROSS * (STEPS + 1)))
            taken = torch.einsum("hiw,wn->hin", source, self.mapper)
            new = (taken * self.kept + target * (1 - self.kept)) * self.equalizer
            target = alpha * new + (1 - alpha) * target
            if target.shape[1] == 16 * 16:  # the maps of 16², after the edit, summed over the steps
                both = torch.stack([source, target])
                self.sums[name] = self.sums[name] + both if name in self.sums else both
        elif self.step < int(SELF * STEPS) and target.shape[1] <= SELF_PIXELS:
            target = source
        return torch.cat([probs[:3], target[None]])

    def mask(self, tokens, size, pool):
        maps = torch.cat(list(self.sums.values()), dim=1)  # source and target, sites × heads, i, j
        heat = rearrange((maps * tokens[:, None, None]).sum(-1).mean(1), "n (y x) -> n 1 y x", y=16)
        if pool:
            heat = F.max_pool2d(heat, 3, 1, 1)
        heat = F.interpolate(heat, size)
        found = heat / heat.amax((2, 3), keepdim=True) > self.threshold
        return found[:1] | found[1:]

    def after_step(self, x):
        """Local blending of the latents, source and target; then the next step."""
        if self.words is not None and self.step >= int(self.start * STEPS):
            mask = self.mask(self.words, x.shape[2:], True)
            if self.without is not None:
                mask = mask & ~self.mask(self.without, x.shape[2:], False)
            x = x[:1] + mask.float() * (x - x[:1])
        self.step += 1
        return x


@dataclass
class Processor:
    """The hook that diffusers offers: one processor a site."""

    name: str
    control: Published

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        words = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=attn.heads)
            for y in (attn.to_q(hidden_states), attn.to_k(words), attn.to_v(words))
        )
        probs = (torch.einsum("bhid,bhjd->bhij", q, k) * attn.scale).softmax(-1)
        probs = self.control.attention(probs, self.name, encoder_hidden_states is not None)
        return attn.to_out[0](rearrange(probs @ v, "b h n d -> b n (h d)"))


@pytest.fixture(scope="module")
def pipeline(model):
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model.text.folder, safety_checker=None)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@torch.no_grad()
def published_run(pipe, prompts, noise, guidance, control):
    """The latents of source and target, steps + 1 × 2 c h w."""
    pipe.unet.set_attn_processor({name: Processor(name, control) for name in pipe.unet.attn_processors})
    ids = pipe.tokenizer(["", "", *prompts], padding="max_length", truncation=True, return_tensors="pt").input_ids
    context = pipe.text_encoder(ids)[0]
    pipe.scheduler.set_timesteps(STEPS)
    x = noise.expand(2, -1, -1, -1)
    latents = [x]
    for t in pipe.scheduler.timesteps:
        without, with_ = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample.chunk(2)
        x = pipe.scheduler.step(without + guidance * (with_ - without), t, x).prev_sample
        x = control.after_step(x)
        latents.append(x)
    return torch.stack(latents)


def published_pair(kind):
    """(source, target), mapper and κ as the published code returned them."""
    pairs, data = json.loads((DATA / "p2p_prompts.json").read_text(encoding="utf-8")), np.load(DATA / "p2p_mappers.npz")
    mapper = torch.zeros(77, 77)
    if kind == "swap":
        rows = data["swap_at"][:, 0] == SWAP
        mapper[tuple(torch.from_numpy(data["swap_at"][rows, 1:]).long().T)] = torch.from_numpy(data["swap_value"][rows])
        return pairs["swap"][SWAP], mapper, torch.ones(77)
    at = torch.from_numpy(data["refine_from"][REFINE]).long()
    mapper[at.clamp(min=0), torch.arange(77)] = 1
    return pairs["refine"][REFINE], mapper, torch.from_numpy(data["refine_alpha"][REFINE]).float()


def marked(pipe, prompt, *words, value=1.0, otherwise=0.0):
    """77 numbers: `value` at the tokens of the words, `otherwise` elsewhere."""
    out, at = torch.full((77,), otherwise), 1
    for word in prompt.split(" "):
        tokens = len(pipe.tokenizer(word).input_ids) - 2
        if word in words:
            out[at : at + tokens] = value
        at += tokens
    return out


CASES = {  # kind, weights, (words of source, of target), (words kept out of source, of target)
    "replace": ("swap", {}, None, None),
    "refine": ("refine", {}, None, None),
    "reweight": ("same", {"kangaroo": 4.0}, None, None),
    "replace, reweight": ("swap", {"horse": -1.5}, None, None),
    "refine, reweight, blend": ("refine", {"zebra": 2.5}, ("zebra", "zebra"), None),
    "replace, blend, subtract": ("swap", {}, ("kangaroo", "horse"), ("RED", "RED")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_edit_equals_the_published_prompt_to_prompt_on_diffusers(model, pipeline, case):
    kind, weights, words, without = CASES[case]
    (source, target), mapper, kept = published_pair("swap" if kind == "same" else kind)
    if kind == "same":
        target, mapper = source, torch.eye(77)
    equalizer = torch.ones(77)
    for word, c in weights.items():
        equalizer = equalizer * marked(pipeline, target, word, value=c, otherwise=1.0)

    plain = model.generate(target, seed=SEED, steps=STEPS)
    options, blend = {}, None
    if words:
        threshold = middle_of_heat(model, source, words[0])
        blend = LocalBlend(
            words[:1],
            words[1:],
            *([without[:1], without[1:]] if without else []),
            threshold=threshold,
            without_threshold=threshold,
        )
        options = dict(
            threshold=threshold,
            words=torch.stack([marked(pipeline, source, words[0]), marked(pipeline, target, words[1])]),
        )
    if without:
        options["without"] = torch.stack([marked(pipeline, source, without[0]), marked(pipeline, target, without[1])])

    control = Published(mapper, kept, equalizer, **options)
    theirs = published_run(pipeline, (source, target), plain.latents[:1], model.guidance_scale, control)
    kind = "refine" if kind == "same" else kind
    ours = model.edit(
        source,
        target,
        seed=SEED,
        steps=STEPS,
        cross_replace=CROSS,
        self_replace=SELF,
        self_max_queries=SELF_PIXELS,
        kind=kind,
        reweight=weights,
        local_blend=blend,
        parity=True,
    )

    scale, effect = float(ours.latents[-1].std()), float((ours.latents - plain.latents).abs().max())
    for run, row in ((ours.source, 0), (ours, 1)):
        error = float((run.latents - theirs[:, row]).abs().max())
        assert error <= 1e-3 * scale and error <= 3e-3 * effect, f"{error:.1e} of {scale:.1e}, effect {effect:.1e}"
    if blend:
        assert 0 < ours.mask.float().mean() < 1


def middle_of_heat(model, prompt, word):
    """A threshold that makes a mask of part of the picture, whatever the weights have learnt."""
    run = model.generate(prompt, seed=SEED, steps=STEPS)
    heat = run.maps(word)
    return float((heat / heat.max()).quantile(0.9))
