"""The files that a model's weights are in are never overwritten."""

import pytest
from families import PROMPT, copy_folder

import minip2p
from minip2p.checkpoints.origin import CheckpointOrigin


def test_a_run_is_not_written_over_the_models_weights(family, tmp_path):
    """Even if the name in the model's folder is a link to the file."""
    linked, file = copy_folder(family("SD 1")[1], tmp_path / "linked"), tmp_path / "elsewhere.safetensors"
    weights = linked / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(file)
    weights.symlink_to(file)
    before, model = file.read_bytes(), minip2p.load(linked)
    with pytest.raises(ValueError, match="elsewhere.safetensors: the model's weights are in it"):
        model.record(PROMPT, steps=1, file=file)
    with pytest.raises(ValueError, match="the model's weights are in it"):
        model.generate(PROMPT, steps=1).save(file)
    assert file.read_bytes() == before


def test_all_shards_of_an_index_are_protected(tmp_path):
    index, shard = tmp_path / "unet/model.safetensors.index.json", tmp_path / "unet/model-1.safetensors"
    index.parent.mkdir()
    shard.touch()
    origin = CheckpointOrigin({"unet": index})
    with pytest.raises(ValueError, match="model-1.safetensors: the model's weights are in it"):
        origin.refuse_overwrite(shard)
    origin.refuse_overwrite(tmp_path / "unet/new.safetensors")
