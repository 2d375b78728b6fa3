"""MasaCtrl and plug-and-play as an `Attend` of the target."""

import pytest
import torch

import minip2p
from minip2p import Site, SiteFilter
from minip2p.baselines import MasaCtrl, PlugAndPlay

STEPS, TARGET = 4, "a dog on the beach"


@pytest.fixture(scope="module")
def model():
    return minip2p.load()


@pytest.fixture(scope="module")
def run(model):
    return model.generate("a cat on the beach", seed=1, steps=STEPS)


def test_the_target_asks_and_the_source_answers(run):
    """MasaCtrl (eq. 5): softmax(q_e k_sᵀ / √d) v_s, for each target of a batch, by hand at one site."""
    guide = MasaCtrl(run, start=0.0)
    source = guide.read(1)
    site = next(iter(source))
    q, k, v = (torch.randn(2, *t.shape[1:]) for t in source[site])
    k_s, v_s = source[site][1:]
    by_hand = (q @ k_s.mT * q.shape[-1] ** -0.5).softmax(-1) @ v_s
    torch.testing.assert_close(guide.at(1)(q, k, v, site), by_hand)
    assert {s.place for s in source} == {"up"} and not any(s.cross for s in source)
    cross = Site("up", 0, True, 1)
    torch.testing.assert_close(guide.at(1)(q, k, v, cross), (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v)


def test_a_source_edited_into_itself_by_masactrl_is_itself(model, run):
    made = model.edit(run, run.prompt, cross_replace=0, self_replace=0, attend=MasaCtrl(run, start=0.0))
    torch.testing.assert_close(made.latents, run.latents, atol=1e-3, rtol=0)


def test_plug_and_plays_attention_is_prompt_to_prompts_injection_in_the_decoder(model, run):
    up = SiteFilter(places=("up",))
    theirs = model.edit(run, TARGET, cross_replace=0, self_replace=0, attend=PlugAndPlay(run, end=0.5))
    ours = model.edit(run, TARGET, cross_replace=0, self_replace=0.5, self_max_queries=16 * 16, sites=up)
    plain = model.edit(run, TARGET, cross_replace=0, self_replace=0)
    torch.testing.assert_close(theirs.latents, ours.latents, atol=1e-4, rtol=0)
    assert (theirs.latents - plain.latents).abs().max() > 0.05


def test_steps_and_sites_are_those_that_are_asked_for(model, run):
    guide = MasaCtrl(run, start=0.5)
    before = model.rows
    assert [guide.at(step) is minip2p.fused for step in range(STEPS)] == [True, True, False, False]
    assert model.rows == before + 2  # one row of the source for each step that is guided
    fine = PlugAndPlay(run, sites=SiteFilter(places=("down",), strides=(1,))).read(0)
    assert {(site.place, site.stride) for site in fine} == {("down", 1)}


def test_heads_that_are_not_asked_for_attend_by_themselves(run):
    guide = MasaCtrl(run, start=0.0, sites=SiteFilter(places=("up",), heads=(1,)))
    source = guide.read(1)
    site = next(iter(source))
    q, k, v = (torch.randn(1, *t.shape[1:]) for t in source[site])
    made, led, own = guide.at(1)(q, k, v, site), MasaCtrl(run, start=0.0).at(1)(q, k, v, site), minip2p.fused(q, k, v)
    assert torch.equal(made[:, 1], led[:, 1]) and torch.equal(made[:, 0], own[:, 0])
    assert not torch.equal(led[:, 0], own[:, 0])


@pytest.mark.parametrize(
    "made, says",
    [
        (lambda run: MasaCtrl(run, start=2.0), "the steps of steps are shares"),
        (lambda run: PlugAndPlay(run, end=-1), "the steps of steps are shares"),
        (lambda run: MasaCtrl(run, sites=SiteFilter(places=("left",))), "places must be some of"),
    ],
)
def test_what_a_neighbour_cannot_be_is_one_clear_line(run, made, says):
    with pytest.raises(ValueError, match=says):
        made(run)


@pytest.mark.parametrize(
    "edited, says",
    [
        ({"steps": STEPS + 1}, "has 4 steps, and the edit has more"),
        ({"size": (64, 64)}, "of another size than the edit"),
    ],
)
def test_a_run_that_does_not_fit_the_edit_is_one_clear_line(model, run, edited, says):
    other = model.generate("a cat on the beach", **({"steps": STEPS} | edited))
    with pytest.raises(ValueError, match=says):
        model.edit(other, TARGET, cross_replace=0, self_replace=0, attend=MasaCtrl(run, start=0.0))


def test_several_targets_share_what_is_read(model, run):
    before = model.rows
    made = model.edit(
        run, [TARGET, "a pig on the beach"], cross_replace=0, self_replace=0, attend=MasaCtrl(run, start=0.0)
    )
    assert model.rows - before == STEPS * (1 + 2 * 2) - 1 and len(made) == 2


def test_masactrl_outside_of_a_run_says_what_it_is_for(run):
    q = torch.zeros(1, 4, 4, 8)
    with pytest.raises(TypeError, match="use it as the attend of an edit"):
        MasaCtrl(run)(q, q, q, Site("up", 0, False, 1))
