"""The data set: what `datasets` reads, the first step of diffusers' trainer, image folder and webdataset."""

import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from prompts import TOKENIZER

from minip2p.pairs.dataset import COLUMNS, PICTURES, read_unit
from minip2p.pairs.make import make_pairs, unit_file, write_dataset
from minip2p.pairs.prompts import Target, Unit
from minip2p.pairs.settings import SCORES, PairSettings

TARGETS = (
    Target("a tiger on the beach", "turn the cat into a tiger", "object"),
    Target("a cat on the beach, watercolor", "make it a watercolor", "style"),
)
UNIT = Unit("a cat on the beach", TARGETS)
SIDE = 64


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    """Pairs in all formats: of three samples, the two best that pass."""
    path = tmp_path_factory.mktemp("pairs")
    settings = PairSettings(samples=3, steps=2, noises=1, keep=2, least=dict.fromkeys(SCORES))
    make_pairs(small_model, [UNIT], settings, path)
    write_dataset(path, [UNIT], ["parquet", "imagefolder", "webdataset"])
    return path


@pytest.fixture(scope="module")
def table(folder):
    return pq.read_table(folder / "data" / "train-00000-of-00001.parquet")


def test_the_metadata_are_those_that_datasets_writes(table):
    """`datasets` 5.2 wrote this for the same features: Image columns are a struct of bytes and a path."""
    content = json.loads(table.schema.metadata[b"huggingface"])
    features = content["info"]["features"]
    assert list(features) == list(COLUMNS) == table.column_names and content.keys() == {"info"}
    assert features["input_image"] == features["edited_image"] == features["mask"] == {"_type": "Image"}
    assert features["edit_prompt"] == {"dtype": "string", "_type": "Value"}
    assert str(table.schema.field("input_image").type) == "struct<bytes: binary, path: string>"
    for name in set(COLUMNS) - set(PICTURES):
        dtype = features[name]["dtype"].replace("float64", "double")
        assert str(table.schema.field(name).type) == dtype


def test_the_best_are_kept_in_order(folder, table):
    rows = table.to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, 1, 2]
    candidates = read_unit(unit_file(folder, UNIT))
    assert len(candidates) == 6 and [row for row in candidates if row["rank"]] != candidates
    for target in TARGETS:
        totals = [row["fits_source"] + row["fits_target"] for row in candidates if row["kind"] == target.kind]
        best = [row["fits_source"] + row["fits_target"] for row in rows if row["kind"] == target.kind]
        assert best == sorted(totals, reverse=True)[:2]
    for row in candidates:
        assert all((row[name] is None) == (row["rank"] is None) for name in PICTURES)


def test_pictures_carry_their_settings(table):
    row = table.to_pylist()[0]
    with Image.open(io.BytesIO(row["edited_image"]["bytes"])) as picture:
        text = picture.text["parameters"]
    assert text.startswith(f"{row['edited_prompt']}\nSteps: 2, ") and f"Seed: {row['seed']}, " in text
    assert f"Cross: {row['cross_replace']}, " in text and "Source: a cat on the beach" in text


def test_diffusers_trainer_takes_a_step(table):
    """The data part of examples/instruct_pix2pix/train_instruct_pix2pix.py (the columns it takes by default, how it
    decodes, resizes, stacks, flips and collates them) and its step, with a small random VAE and a UNet of 8 channels.
    """
    original, prompt, edited = table.column_names[:3]
    rows = table.to_pylist()
    decode = {name: [Image.open(io.BytesIO(row[name]["bytes"])) for row in rows] for name in (original, edited)}

    def convert(images):
        arrays = [np.array(image.convert("RGB").resize((32, 32))).transpose(2, 0, 1) for image in images]
        return np.concatenate(arrays)

    images = 2 * (torch.tensor(np.stack([convert(decode[original]), convert(decode[edited])])) / 255) - 1
    before, after = (each.reshape(-1, 3, 32, 32).float() for each in images.flip(-1))
    ids = TOKENIZER([row[prompt] for row in rows], max_length=77, padding="max_length", truncation=True)["input_ids"]
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks("Encoder", "Decoder"))
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    words = torch.nn.Embedding(len(TOKENIZER), 16)(torch.tensor(ids)).detach()
    schedule = DDPMScheduler()
    with torch.no_grad():
        latents = vae.encode(after).latent_dist.sample() * vae.config.scaling_factor
        image_latents = vae.encode(before).latent_dist.mode()
    noise, times = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),))
    x = torch.cat([schedule.add_noise(latents, noise, times), image_latents], dim=1)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)

    def loss():
        return F.mse_loss(unet(x, times, words, return_dict=False)[0], noise)

    first = loss()
    first.backward()
    optimizer.step()
    assert torch.isfinite(first) and loss() < first and len(latents) == 4
    assert not torch.equal(before, after) and before.abs().max() <= 1


def blocks(*sides):
    """The types of two blocks of a small VAE."""
    return {
        f"{side}_block_types": (f"{side.capitalize()}{name}Block2D",) * 2
        for side, name in (("down", sides[0]), ("up", sides[1]))
    }


def test_the_image_folder_has_the_same_pairs(folder, table):
    train = folder / "imagefolder" / "train"
    lines = [json.loads(line) for line in (train / "metadata.jsonl").read_text().splitlines()]
    names = {f"{name}_file_name" if name in PICTURES else name for name in COLUMNS}
    assert len(lines) == 4 and all(line.keys() == names for line in lines)
    for line, row in zip(lines, table.to_pylist(), strict=True):
        assert (train / line["edited_image_file_name"]).read_bytes() == row["edited_image"]["bytes"]
        assert line["edit_prompt"] == row["edit_prompt"] and line["psnr"] == row["psnr"]


def test_the_webdataset_has_the_same_pairs(folder, table):
    with tarfile.open(folder / "webdataset" / "train-00000-of-00001.tar") as archive:
        contents = {entry.name: archive.extractfile(entry).read() for entry in archive}
        assert {entry.mtime for entry in archive} == {0}
    for number, row in enumerate(table.to_pylist()):
        key = f"{number:08d}"
        assert contents[f"{key}.input_image.png"] == row["input_image"]["bytes"]
        assert json.loads(contents[f"{key}.json"])["edited_prompt"] == row["edited_prompt"]
    assert len(contents) == 4 * 4


def test_a_damaged_unit_is_one_line(folder, tmp_path):
    for content in (b"", b"half", unit_file(folder, UNIT).read_bytes()[:200]):
        (tmp_path / "unit.parquet").write_bytes(content)
        with pytest.raises(ValueError, match="does not hold the candidates of its prompts: remove it to make them"):
            read_unit(tmp_path / "unit.parquet")
