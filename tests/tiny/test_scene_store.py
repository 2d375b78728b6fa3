"""The scenes in memory: what workers render, what is drawn from it, and errors in a worker."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minip2p.text.prompt import Prompt
from minip2p.tiny import scene_store
from minip2p.tiny.batches import draw_indices
from minip2p.tiny.export import load_tokenizer
from minip2p.tiny.grounding import slot_regions, token_slots
from minip2p.tiny.judge_data import labelled_batch
from minip2p.tiny.judge_network import JudgeConfig
from minip2p.tiny.render import render, render_batch
from minip2p.tiny.scene_store import CAPTIONS, SceneStore, Share, render_share
from minip2p.tiny.scenes import dataset
from minip2p.tiny.sprites import Sprites

CPU = torch.device("cpu")


class MeanVAE:
    """Its latents are means over 8 × 8 pixels, and decoding repeats them."""

    def encode(self, pictures):
        return F.avg_pool2d(pictures, 8), None

    def decode(self, z):
        return F.interpolate(z, scale_factor=8.0)


@pytest.fixture(scope="module")
def arrays(sprites):
    return render_share(Share(row=0, start=5, size=6), 0, False, sprites, load_tokenizer())


def test_a_share_has_the_pictures_labels_and_captions_of_its_scenes(arrays, sprites):
    scenes, tokenizer = list(dataset(0, 6, start=5)), load_tokenizer()
    expected = labelled_batch(scenes, sprites, JudgeConfig(), corrupt_seed=0)
    assert {len(array) for array in arrays.values()} == {6}
    for i, scene in enumerate(scenes):
        drawn = render(scene, sprites)
        np.testing.assert_array_equal(arrays["pictures"][i], drawn.picture)
        np.testing.assert_array_equal(arrays["regions"][i], slot_regions(scene, drawn))
        for k in range(CAPTIONS):
            ids = arrays["token_ids"][i, k].tolist()
            prompt = Prompt.tokenize(tokenizer.decode(ids, skip_special_tokens=True), tokenizer)
            assert all(thing.name in prompt.text for thing in scene.things) and list(prompt.ids) == ids
            assert arrays["slots"][i, k].tolist() == token_slots(scene, prompt)
    corrupted = torch.from_numpy(arrays["corrupted"]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(corrupted, expected.pictures)
    for name in ("labels", "present", "colours", "background", "style", "strength"):
        np.testing.assert_array_equal(arrays[name], getattr(expected, name))
    assert len({tuple(ids) for ids in arrays["token_ids"][0].tolist()}) > 1


def test_directions_come_on_request(arrays, sprites):
    tokenizer = load_tokenizer()
    with_directions = render_share(Share(0, 5, 6), 0, True, sprites, tokenizer)
    for share, expected in ((arrays, False), (with_directions, True)):
        captions = [tokenizer.decode(ids, skip_special_tokens=True) for ids in share["token_ids"].reshape(-1, 77)]
        assert any("facing" in caption for caption in captions) == expected


@pytest.fixture(scope="module")
def store(ball_arrays):
    """40 scenes, which two processes render in shares of 16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_store, "SHARE", 16)
        load_sprites = partial(Sprites, ball_arrays)
        with SceneStore(40, 7, load_sprites, workers=2, device=CPU) as store:
            store.set_vae(MeanVAE())
            yield store


def test_pictures_are_those_of_the_scenes(store, sprites):
    pictures = store.picture_batch(3, 0, 4)
    indices = draw_indices(7, 3, 4, 40)
    expected = [next(dataset(7, 1, start=i)) for i in indices.tolist()]
    torch.testing.assert_close(pictures, render_batch(expected, sprites))
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert store.available(10**9) == 40


def test_a_batch_has_latents_regions_and_captions_of_the_same_scenes(store, sprites):
    batch, tokenizer = store.batch(4, 0, 64), load_tokenizer()
    empty = Prompt.tokenize("", tokenizer)
    drops = 0
    for i, row in enumerate(draw_indices(7, 4, 64, 40).tolist()):
        scene = next(dataset(7, 1, start=row))
        if batch.token_ids[i].tolist() == list(empty.ids):
            drops += 1
            assert (batch.slots[i] == -1).all()
        else:
            prompt = Prompt.tokenize(tokenizer.decode(batch.token_ids[i], skip_special_tokens=True), tokenizer)
            assert batch.slots[i].tolist() == token_slots(scene, prompt)
        if i < 4:
            drawn = render(scene, sprites)
            torch.testing.assert_close(batch.regions[i] * 255, torch.from_numpy(slot_regions(scene, drawn)).float())
            mean = F.avg_pool2d(render_batch([scene], sprites), 8)[0]
            torch.testing.assert_close(batch.latents[i], mean, rtol=0, atol=2e-3)  # float16
    assert 0 < drops < 20
    repeated = store.batch(4, 0, 64)
    assert torch.equal(batch.token_ids, repeated.token_ids) and torch.equal(batch.latents, repeated.latents)
    assert not torch.equal(batch.latents, store.batch(5, 0, 64).latents)


def test_the_validation_is_of_other_scenes_of_the_same_split(store, sprites):
    validation = store.validation()
    assert len(validation.latents) == store.validation_count == 2  # a sixteenth of 40
    scene = next(dataset(7, 1, start=scene_store.VALIDATION_START))
    torch.testing.assert_close(
        validation.latents[0], F.avg_pool2d(render_batch([scene], sprites), 8)[0], rtol=0, atol=2e-3
    )


def test_the_scaling_factor_is_of_the_latents(store):
    assert store.scaling_factor() == pytest.approx(1 / float(store.rows["latents"][:40].float().std()))


def test_the_judges_batches_are_half_decoded_and_half_corrupted(store, sprites):
    batch = store.judge_batch(6, 0, 4)
    scenes = [next(dataset(7, 1, start=i)) for i in draw_indices(7, 6, 4, 40).tolist()]
    expected = labelled_batch(scenes, sprites, JudgeConfig(), corrupt_seed=7)
    torch.testing.assert_close(batch.pictures[1::2], expected.pictures[1::2])
    means = F.avg_pool2d(render_batch(scenes[::2], sprites), 8)
    torch.testing.assert_close(batch.pictures[::2], F.interpolate(means, scale_factor=8.0), rtol=0, atol=1e-2)
    for name in ("labels", "present", "colours", "background", "style", "strength"):
        assert torch.equal(getattr(batch, name), getattr(expected, name))


def no_sprites():
    raise ValueError("there are no sprites")


def test_an_error_in_a_worker_ends_the_training():
    with (
        SceneStore(16, 0, no_sprites, workers=1, device=CPU) as store,
        pytest.raises(ValueError, match="there are no sprites"),
    ):
        store.picture_batch(0, 0, 2)


def test_a_worker_that_is_killed_ends_the_training(ball_arrays):
    with SceneStore(16, 0, partial(Sprites, ball_arrays), workers=1, device=CPU) as store:
        store.processes[0].kill()
        with pytest.raises(ValueError, match="was ended"):
            store.picture_batch(0, 0, 2)
