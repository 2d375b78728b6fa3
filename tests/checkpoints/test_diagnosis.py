"""A result that is not finite is explained by the first damaged weight."""

import pytest
import torch
from families import copy_folder
from safetensors.torch import load_file, save_file

import minip2p


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_damaged_weight_is_named_by_the_first_generation(family, tmp_path, value):
    folder = copy_folder(family("SD 1")[1], tmp_path / "model")
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    path.unlink()
    save_file(tensors, path)
    message = r"mid_block.resnets.0.conv1.weight is not finite: the weights are damaged"
    with pytest.raises(ValueError, match=message) as error:
        minip2p.load(folder).generate("a cat", steps=1)
    assert str(error.value).startswith(str(path))
