"""MasaCtrl and plug-and-play as the attention of an edit's target."""

from dataclasses import replace

import pytest
import torch
from runs import CallLog

from minip2p import Site, SiteFilter, fused
from minip2p.attention.contract import unconditional_of
from minip2p.baselines import MasaCtrl, PlugAndPlay
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.sampling.guidance import unet_noise
from minip2p.text.encoder import TextEmbedding

STEPS, SOURCE, TARGET = 4, "a cat on the beach", "a dog on the beach"
SETTINGS = dict(seed=1, steps=STEPS, size=(64, 72))
NO_INJECTION = dict(cross_replace=0, self_replace=0)


@pytest.fixture(scope="module")
def run(model):
    return model.generate(SOURCE, **SETTINGS)


@pytest.fixture
def log():
    return CallLog()


@pytest.fixture
def counted_run(model, log):
    """A run whose replays are in `log`."""
    run = model.counting(log).generate(SOURCE, **SETTINGS)
    log.calls.clear()
    return run


def literal_attention(q, k, v):
    """softmax(q kᵀ / √d) v"""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def test_masactrl_attends_with_the_targets_queries_to_the_sources_keys_and_values(run):
    """softmax(q_e k_sᵀ / √d) v_s (Cao et al. 2023), for each target of a batch, by hand at one site."""
    masactrl = MasaCtrl(run, start=0.0)
    source = masactrl.read_source(1)
    site = next(iter(source))
    q, k, v = (torch.randn(2, *t.shape[1:]).to(t.device) for t in source[site])
    _, k_s, v_s = source[site]
    torch.testing.assert_close(masactrl.at(1)(q, k, v, site), literal_attention(q, k_s, v_s))
    assert {site.place for site in source} == {"up"} and not any(site.cross for site in source)
    cross = Site("up", 0, True, 1)
    torch.testing.assert_close(masactrl.at(1)(q, k, v, cross), literal_attention(q, k, v))


def photograph():
    return torch.rand(3, 64, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1


def edit_by_hand(model, run, rows, attend_at):
    """The published loops: one batch of source and target in each step, with the source at the pivots of `run`.

    rows: (whose latents, prompt) of each row; the target has two, the unconditional one first. Returns its latents,
    on the CPU.
    """
    components, pivots = model.components, run.latents.to(model.device)
    x = pivots[:1]
    embedding = TextEmbedding.cat(components.text(text) for _, text in rows)
    for i, step in enumerate(components.scheduler.steps(run.steps)):
        latents = torch.cat([x if whose == "target" else pivots[i : i + 1] for whose, _ in rows])
        eps = unet_noise(components, latents, step.t, embedding, attend_at(i))
        uncond, cond = (eps[n : n + 1] for n, (whose, _) in enumerate(rows) if whose == "target")
        x = components.scheduler.step(x, uncond + run.guidance_scale * (cond - uncond), step)
    return x.cpu()


@pytest.mark.parametrize("prompt, negative", [("", ""), (SOURCE, "a pig")])
def test_masactrl_on_both_branches_is_the_published_loop(model, prompt, negative):
    """In each half of the batch all rows attend to the keys and values of its first row, the source's. float32, 1e-4.

    PIE-Bench's code has an empty source prompt; with others the halves have sources of their own.
    """
    run = model.invert(photograph(), prompt, method="direct", steps=STEPS, negative_prompt=negative)
    sites = SiteFilter(places=("up",), strides=(1,))

    def attend_at(step):
        def attend(q, k, v, site):
            if site.cross or not sites.includes(site) or step < 1:
                return literal_attention(q, k, v)
            halves = zip(q.chunk(2), k.chunk(2), v.chunk(2), strict=True)
            return torch.cat([literal_attention(q_half, k_half[:1], v_half[:1]) for q_half, k_half, v_half in halves])

        return attend

    rows = [("source", negative), ("target", negative), ("source", prompt), ("target", TARGET)]
    expected = edit_by_hand(model, run, rows, attend_at)
    both, conditional = (
        model.edit(run, TARGET, **NO_INJECTION, attend=MasaCtrl(run, 0.25, sites, unconditional)).latents[-1:]
        for unconditional in (True, False)
    )
    torch.testing.assert_close(both, expected, atol=1e-4, rtol=0)
    assert (conditional - both).abs().max() > 0.01


def test_plug_and_play_on_both_branches_is_the_published_loop_without_its_features(model):
    """Both rows of the target have the queries and keys of a source row without words. float32, 1e-4."""
    run = model.invert(photograph(), SOURCE, method="direct", steps=STEPS, negative_prompt="a pig")
    sites = SiteFilter(places=("up",), indices=(1, 2))

    def attend_at(step):
        def attend(q, k, v, site):
            if not site.cross and sites.includes(site) and step < 2:
                q, k = (tensor[:1].expand_as(tensor) for tensor in (q, k))
            return literal_attention(q, k, v)

        return attend

    expected = edit_by_hand(model, run, [("source", ""), ("target", "a pig"), ("target", TARGET)], attend_at)
    source = replace(run, prompt="", negative_prompt="")
    edit = model.edit(run, TARGET, **NO_INJECTION, attend=PlugAndPlay(source, 0.5, sites, unconditional=True))
    torch.testing.assert_close(edit.latents[-1:], expected, atol=1e-4, rtol=0)


def test_the_unconditional_rows_are_fused_unless_they_are_asked_for(run):
    assert unconditional_of(MasaCtrl(run, start=0.0).at(1)) is fused
    assert unconditional_of(MasaCtrl(run, start=0.5, unconditional=True).at(1)) is fused


def test_the_source_runs_its_unconditional_row_only_where_it_differs(counted_run, log):
    MasaCtrl(counted_run, start=0.0, unconditional=True).at(1)
    assert log.calls == [1, 1]
    log.calls.clear()
    MasaCtrl(replace(counted_run, prompt=""), start=0.0, unconditional=True).at(1)
    assert log.calls == [1]


def test_a_run_that_is_guided_by_an_image_has_rows_of_a_third_kind(run):
    image = ImageConditioning(torch.zeros(1, 4, 8, 9), image_guidance_scale=1.5)
    guided = replace(run, conditioning=Conditioning(image=image))
    with pytest.raises(ValueError, match="unconditional: a run that is guided by an image has two kinds of such rows"):
        MasaCtrl(guided, unconditional=True)


def test_masactrl_of_a_source_into_its_own_prompt_is_the_source(model, run):
    edit = model.edit(run, run.prompt, **NO_INJECTION, attend=MasaCtrl(run, start=0.0))
    torch.testing.assert_close(edit.latents, run.latents, atol=1e-3, rtol=0)


def test_plug_and_play_is_the_injection_of_prompt_to_prompt_in_the_decoder(model, run):
    decoder = SiteFilter(places=("up",))
    plug_and_play = model.edit(run, TARGET, **NO_INJECTION, attend=PlugAndPlay(run, end=0.5))
    injected = model.edit(run, TARGET, cross_replace=0, self_replace=0.5, self_max_queries=16 * 16, sites=decoder)
    plain = model.edit(run, TARGET, **NO_INJECTION)
    torch.testing.assert_close(plug_and_play.latents, injected.latents, atol=1e-4, rtol=0)
    assert (plug_and_play.latents - plain.latents).abs().max() > 0.05


def test_steps_and_sites_are_those_of_the_options(counted_run, log):
    masactrl = MasaCtrl(counted_run, start=0.5)
    assert [masactrl.at(step) is fused for step in range(STEPS)] == [True, True, False, False]
    assert log.calls == [1, 1]  # one row of the source for each step at which it acts
    fine = PlugAndPlay(counted_run, sites=SiteFilter(places=("down",), strides=(1,))).read_source(0)
    assert {(site.place, site.stride) for site in fine} == {("down", 1)}


def test_steps_count_from_the_first_one_that_is_edited(model):
    """As the published code counts, which sees no skipped steps: .25 of 4 steps after 2 skipped ones is step 3."""
    run = model.invert(photograph(), SOURCE, method="edit-friendly", steps=STEPS, skip=0.5)
    assert MasaCtrl(run, start=0.25).step_weights().tolist() == [0, 0, 0, 1]
    assert PlugAndPlay(run, end=0.25).step_weights().tolist() == [0, 0, 1, 0]


def test_other_heads_attend_as_before(run):
    masactrl = MasaCtrl(run, start=0.0, sites=SiteFilter(places=("up",), heads=(1,)))
    source = masactrl.read_source(1)
    site = next(iter(source))
    q, k, v = (torch.randn(1, *t.shape[1:]).to(t.device) for t in source[site])
    one_head = masactrl.at(1)(q, k, v, site)
    all_heads, unchanged = MasaCtrl(run, start=0.0).at(1)(q, k, v, site), fused(q, k, v)
    assert torch.equal(one_head[:, 1], all_heads[:, 1]) and torch.equal(one_head[:, 0], unchanged[:, 0])
    assert not torch.equal(all_heads[:, 0], unchanged[:, 0])


@pytest.mark.parametrize(
    "construct, message",
    [
        (lambda run: MasaCtrl(run, start=2.0), "the steps of steps are shares"),
        (lambda run: PlugAndPlay(run, end=-1), "the steps of steps are shares"),
        (lambda run: MasaCtrl(run, sites=SiteFilter(places=("left",))), "places must be some of"),
    ],
)
def test_options_that_are_refused(run, construct, message):
    with pytest.raises(ValueError, match=message):
        construct(run)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": STEPS + 1}, "the source run has 4 steps, and the edit has more"),
        ({"size": (64, 64)}, "the source run has another size than the edit"),
    ],
)
def test_a_source_that_does_not_fit_the_edit_is_refused(model, run, settings, message):
    other = model.generate(SOURCE, **SETTINGS | settings)
    with pytest.raises(ValueError, match=message):
        model.edit(other, TARGET, **NO_INJECTION, attend=MasaCtrl(run, start=0.0))


def test_several_targets_share_the_rows_of_the_source(model, counted_run, log):
    edits = model.counting(log).edit(
        counted_run, [TARGET, "a pig on the beach"], **NO_INJECTION, attend=MasaCtrl(counted_run, start=0.0)
    )
    assert log.rows == STEPS * (1 + 2 * 2) - 1 and len(edits) == 2


def test_an_edit_of_such_an_edit_runs_its_source_once_a_step(model, counted_run, log):
    edit = model.edit(counted_run, TARGET, **NO_INJECTION, attend=MasaCtrl(counted_run, start=0.0))
    log.calls.clear()
    model.edit(edit, "a pig on the beach", **NO_INJECTION)
    assert log.calls == [1] * STEPS


def test_outside_of_a_run_the_step_is_unknown(run):
    q = torch.zeros(1, 4, 4, 8)
    with pytest.raises(TypeError, match="use it as the attend of an edit"):
        MasaCtrl(run)(q, q, q, Site("up", 0, False, 1))
