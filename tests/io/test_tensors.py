"""Tensor files are written completely or not at all."""

import pytest
import torch
from safetensors import safe_open

from minip2p.io.tensors import write_tensors


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors({"x": torch.ones(2)}, path, {"step": "1"})
    with pytest.raises(AttributeError):
        write_tensors({"x": None}, path)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
