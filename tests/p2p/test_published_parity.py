"""Our edit against the published Prompt-to-Prompt, which is written here a second time, on diffusers.

Nothing of minip2p is in this second implementation: it consists of diffusers' pipeline and scheduler, an attention
processor, and the mappers that the published code itself returned (tests/data).

Axes: b batch, h heads, i queries, j keys, c h w latents.
"""

from dataclasses import dataclass, field

import diffusers
import published_data
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from minip2p import LocalBlend
from minip2p.io.files import shipped_weights

STEPS, SEED = 6, 3
CROSS, SELF, SELF_MAX_QUERIES = 0.4, 0.6, 32 * 32
SWAP, REFINE = 288, 369  # pairs of tests/data for which the published code's mappers have their defects


@dataclass
class Published:
    """The published Prompt-to-Prompt, for the rows [unconditional × 2, conditional × 2], source before target.

    mapper: source tokens × target tokens. kappa: 1 where a refinement takes the source's map. equalizer: c.
    words, without: for source and target, the tokens of the words to blend and of those to leave out; None: no blend.
    """

    mapper: torch.Tensor
    kappa: torch.Tensor
    equalizer: torch.Tensor
    words: torch.Tensor | None = None
    without: torch.Tensor | None = None
    threshold: float = 0.3
    start: float = 0.2
    step: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def attention(self, probs, name, cross):
        """The maps that a processor applies instead of those of the four rows, b h i j. It edits the last row."""
        source, target = probs[2], probs[3]
        if cross:
            alpha = float(self.step < int(CROSS * (STEPS + 1)))
            mapped = torch.einsum("hiw,wn->hin", source, self.mapper)
            new = (mapped * self.kappa + target * (1 - self.kappa)) * self.equalizer
            target = alpha * new + (1 - alpha) * target
            if target.shape[1] == 16 * 16:  # the maps of 16², after the edit, summed over the steps
                both = torch.stack([source, target])
                self.sums[name] = self.sums[name] + both if name in self.sums else both
        elif self.step < int(SELF * STEPS) and target.shape[1] <= SELF_MAX_QUERIES:
            target = source
        return torch.cat([probs[:3], target[None]])

    def mask(self, tokens, size, pool):
        maps = torch.cat(list(self.sums.values()), dim=1)  # source and target, sites × heads, i, j
        heat = rearrange((maps * tokens[:, None, None]).sum(-1).mean(1), "n (y x) -> n 1 y x", y=16)
        if pool:
            heat = F.max_pool2d(heat, 3, 1, 1)
        heat = F.interpolate(heat, size)
        is_hot = heat / heat.amax((2, 3), keepdim=True) > self.threshold
        return is_hot[:1] | is_hot[1:]

    def after_step(self, x):
        """Blends the latents of source and target, and goes to the next step."""
        if self.words is not None and self.step >= int(self.start * STEPS):
            mask = self.mask(self.words, x.shape[2:], True)
            if self.without is not None:
                mask = mask & ~self.mask(self.without, x.shape[2:], False)
            x = x[:1] + mask.float() * (x - x[:1])
        self.step += 1
        return x


@dataclass
class Processor:
    """The hook that diffusers offers: a processor for each site."""

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
def pipeline():
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(shipped_weights("tiny"), safety_checker=None)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture(scope="module")
def generated(model):
    """A function: a prompt -> its run without an edit."""
    runs = {}

    def get(prompt):
        if prompt not in runs:
            runs[prompt] = model.generate(prompt, seed=SEED, steps=STEPS)
        return runs[prompt]

    return get


@torch.no_grad()
def published_run(pipe, prompts, noise, guidance_scale, control):
    """The latents of source and target, steps + 1 × 2 c h w."""
    pipe.unet.set_attn_processor({name: Processor(name, control) for name in pipe.unet.attn_processors})
    ids = pipe.tokenizer(["", "", *prompts], padding="max_length", truncation=True, return_tensors="pt").input_ids
    context = pipe.text_encoder(ids)[0]
    pipe.scheduler.set_timesteps(STEPS)
    x = noise.expand(2, -1, -1, -1)
    latents = [x]
    for t in pipe.scheduler.timesteps:
        uncond, cond = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample.chunk(2)
        x = pipe.scheduler.step(uncond + guidance_scale * (cond - uncond), t, x).prev_sample
        x = control.after_step(x)
        latents.append(x)
    return torch.stack(latents)


def published_pair(kind):
    """(source, target), mapper and κ, as the published code returned them."""
    if kind == "swap":
        return published_data.prompt_pairs("swap")[SWAP], published_data.swap_mappers()[SWAP], torch.ones(77)
    sources, kappas = published_data.refine_mappers()
    mapper = torch.zeros(77, 77)
    mapper[sources[REFINE].clamp(min=0), torch.arange(77)] = 1
    return published_data.prompt_pairs("refine")[REFINE], mapper, kappas[REFINE]


def at_words(pipe, prompt, *words, value=1.0, otherwise=0.0):
    """77 numbers: `value` at the tokens of the words, `otherwise` elsewhere."""
    out, position = torch.full((77,), otherwise), 1
    for word in prompt.split(" "):
        tokens = len(pipe.tokenizer(word).input_ids) - 2
        if word in words:
            out[position : position + tokens] = value
        position += tokens
    return out


# Name -> kind, weights, words to blend (of the source, of the target), words to leave out (of both).
CASES = {
    "replace": ("swap", {}, None, None),
    "refine": ("refine", {}, None, None),
    "reweight": ("same", {"kangaroo": 4.0}, None, None),
    "replace, reweight": ("swap", {"horse": -1.5}, None, None),
    "refine, reweight, blend": ("refine", {"zebra": 2.5}, ("zebra", "zebra"), None),
    "replace, blend, without": ("swap", {}, ("kangaroo", "horse"), ("RED", "RED")),
}


@pytest.mark.parametrize("case", CASES)
def test_an_edit_equals_the_published_prompt_to_prompt_on_diffusers(model, pipeline, generated, case):
    kind, weights, words, without = CASES[case]
    (source, target), mapper, kappa = published_pair("swap" if kind == "same" else kind)
    if kind == "same":
        target, mapper = source, torch.eye(77)
    equalizer = torch.ones(77)
    for word, c in weights.items():
        equalizer = equalizer * at_words(pipeline, target, word, value=c, otherwise=1.0)

    options, blend = {}, None
    if words:
        threshold = middle_of_heat(generated(source), words[0])
        blend = LocalBlend(
            words[0],
            words[1],
            without[0] if without else (),
            without[1] if without else (),
            threshold=threshold,
            without_threshold=threshold,
        )
        options = dict(
            threshold=threshold,
            words=torch.stack([at_words(pipeline, source, words[0]), at_words(pipeline, target, words[1])]),
        )
    if without:
        rows = [at_words(pipeline, source, without[0]), at_words(pipeline, target, without[1])]
        options["without"] = torch.stack(rows)

    plain = generated(target)
    control = Published(mapper, kappa, equalizer, **options)
    published = published_run(pipeline, (source, target), plain.latents[:1], model.default_guidance, control)
    edited = model.edit(
        source,
        target,
        seed=SEED,
        steps=STEPS,
        cross_replace=CROSS,
        self_replace=SELF,
        self_max_queries=SELF_MAX_QUERIES,
        kind="refine" if kind == "same" else kind,
        reweight=weights,
        local_blend=blend,
        parity=True,
    )

    scale, effect = float(edited.latents[-1].std()), float((edited.latents - plain.latents).abs().max())
    for run, row in ((edited.source_run.finish(), 0), (edited, 1)):
        error = float((run.latents - published[:, row]).abs().max())
        assert error <= 1e-3 * scale and error <= 3e-3 * effect, f"{error:.1e} of {scale:.1e}, effect {effect:.1e}"
    if blend:
        assert 0 < edited.blend_mask.float().mean() < 1


def middle_of_heat(run, word):
    """A threshold whose mask is a part of the picture, whatever the weights have learned."""
    heat = run.maps(word)
    return float((heat / heat.max()).quantile(0.9))
