"""Pairs as latents: rendered both ways, encoded once, the same batches after a kill, and pairs from a data set."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from minip2p.text.prompt import Prompt
from minip2p.tiny import pair_latents
from minip2p.tiny.export import load_tokenizer
from minip2p.tiny.pair_latents import (
    MixedPairs,
    PairLatents,
    RenderedChunks,
    encode_pictures,
    render_pairs,
    rendered_pairs,
    table_pairs,
)
from minip2p.tiny.render import render
from minip2p.tiny.scene_edits import TRAINED_KINDS, sample_edit


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(pair_latents, "CHUNK", 8)
    monkeypatch.setattr(pair_latents, "SHARE", 4)


def test_a_pair_is_two_renders_of_its_scenes_with_the_instructions_there_and_back(sprites):
    pictures, token_ids = render_pairs(3, 5, 2, lambda: sprites)
    before, after = sample_edit(TRAINED_KINDS[6], np.random.default_rng((3, 6, 6)))
    assert np.array_equal(pictures[1, 0], render(before, sprites).picture)
    assert np.array_equal(pictures[1, 1], render(after, sprites).picture)
    assert token_ids.shape == (2, 2, 4, 77)
    tokenizer = load_tokenizer()
    texts = [[tokenizer.decode(ids, skip_special_tokens=True) for ids in way] for way in token_ids[1].tolist()]
    assert all(after.things[-1].name in text for text in texts[0])
    assert all(before.things[-1].name in text for text in texts[1])


def test_latents_are_the_means_of_the_encoder_unscaled(cpu_model, sprites):
    """As `Pipeline.instruct` gives them to the UNet, up to float16 and bfloat16."""
    pictures, _ = render_pairs(3, 0, 1, lambda: sprites)
    latents = encode_pictures(cpu_model.vae, pictures)
    x = torch.from_numpy(pictures[0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = cpu_model.vae.unscale(cpu_model.components.encode(x))
    assert latents.shape == (1, 2, 4, 16, 16) and latents.dtype == torch.float16
    assert float((latents[0].float() - expected).std() / expected.std()) < 0.02


def source(tmp_path, vae, sprites, count=16):
    return rendered_pairs(tmp_path, RenderedChunks(vae, 0, lambda: sprites, count=count), "vae")


def test_batches_go_both_ways_and_are_the_same_when_chunks_are_read_again(cpu_model, sprites, tmp_path, monkeypatch):
    pairs = source(tmp_path, cpu_model.vae, sprites)
    batch = pairs.batch(7, 0, 64)
    assert sorted(file.name for file in (tmp_path / "pairs-0-vae").iterdir()) == [
        "0000.safetensors",
        "0001.safetensors",
    ]
    stored = pairs.rows["latents"].float()
    is_forward = [bool((stored[:, 0] == x).flatten(1).all(1).any()) for x in batch.source]
    assert 10 < sum(is_forward) < 54
    ways = torch.cat([stored, stored.flip(1)])
    for pair in zip(batch.source, batch.target, strict=True):
        assert (ways == torch.stack(pair)).flatten(1).all(1).any()
    monkeypatch.setattr(cpu_model.vae, "encode", None)
    reopened = source(tmp_path, cpu_model.vae, sprites).batch(7, 0, 64)
    assert torch.equal(reopened.source, batch.source) and torch.equal(reopened.token_ids, batch.token_ids)


def test_workers_render_the_same_pairs(sprites, ball_arrays, cpu_model):
    here = RenderedChunks(cpu_model.vae, 1, lambda: sprites)(0)
    with RenderedChunks(cpu_model.vae, 1, LoadBalls(ball_arrays), count=12, workers=1) as chunks:
        there = chunks(0)
        assert sorted(chunks.requested) == [1]
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())


class LoadBalls:
    """Loads balls for sprites. A worker can unpickle it."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self):
        from minip2p.tiny.sprites import Sprites

        return Sprites(self.arrays)


# --- pairs of a data set


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (160, 128), colour).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def write_table(folder, **changes):
    rows = {
        "input_image": [png((10 * n, 0, 0)) for n in range(3)],
        "edit_prompt": ["make the cat red"] * 3,
        "edited_image": [png((0, 10 * n, 255)) for n in range(3)],
        "rank": [1, 1, 1],
    } | changes
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.table({name: rows[name] for name in rows if rows[name]}), folder / "data/train.parquet")


def test_pairs_of_a_data_set_go_one_way(cpu_model, tmp_path):
    write_table(tmp_path / "data")
    pairs = table_pairs(tmp_path / "work", tmp_path / "data", cpu_model.vae, "vae", 0)
    batch = pairs.batch(0, 0, 6)
    ids = Prompt.tokenize("make the cat red", load_tokenizer()).ids
    assert batch.token_ids.tolist() == [list(ids)] * 6 and pairs.count == 3
    stored = pairs.rows["latents"].float()
    assert all((stored[:, 0] == x).flatten(1).all(1).any() for x in batch.source)
    half = MixedPairs(pairs, Ones()).batch(0, 0, 6)
    assert torch.equal(half.source[3:], torch.ones(3, 4, 16, 16)) and len(half.token_ids) == 6


class Ones:
    """A source whose latents are ones."""

    def batch(self, step, age, size):
        ones = torch.ones(size, 4, 16, 16)
        return pair_latents.PairBatch(ones, ones, torch.zeros(size, 77, dtype=torch.long))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"edit_prompt": None}, "its files cannot be read as Parquet|has no pairs with the columns"),
        (
            {"input_image": [png((0, 0, 0)), {"bytes": None, "path": "a.png"}, png((0, 0, 0))]},
            "a pair has no input_image",
        ),
        ({"edited_image": [{"bytes": b"GIF89a", "path": None}] * 3}, "a picture in it cannot be read"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_one_line(changes, message, cpu_model, tmp_path):
    write_table(tmp_path / "data", **changes)
    with pytest.raises(ValueError, match=message) as error:
        table_pairs(tmp_path / "work", tmp_path / "data", cpu_model.vae, "vae", 0).batch(0, 0, 2)
    assert str(tmp_path / "data") in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_data_set_is_one_line(cpu_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no data/\\*.parquet"):
        table_pairs(tmp_path, tmp_path / "nothing", cpu_model.vae, "vae", 0)


def test_draws_stay_within_the_count(tmp_path):
    chunk = {"latents": torch.zeros(8, 2, 4, 2, 2), "token_ids": torch.zeros(8, 2, 1, 3, dtype=torch.int16)}
    chunk["latents"][3:] = torch.nan
    pairs = PairLatents(tmp_path, 0, 3, lambda number: chunk)
    assert torch.isfinite(pairs.batch(0, 10**6, 50).source).all() and pairs.chunks == 1
