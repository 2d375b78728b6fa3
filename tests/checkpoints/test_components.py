"""The fingerprint of a model tells models apart, also those whose weights are equal."""

import pytest
from families import PROMPT, copy_folder, update_json

import minip2p


@pytest.mark.parametrize(
    "component, fields",
    [
        ("unet", {"attention_head_dim": 4}),
        ("text_encoder", {"hidden_act": "gelu"}),
        ("vae", {"scaling_factor": 0.2}),
    ],
)
def test_a_run_of_a_model_with_another_configuration_is_refused(family, tmp_path, component, fields):
    folder = copy_folder(family("SD 1")[1], tmp_path / "other")
    minip2p.load(family("SD 1")[1]).generate(PROMPT, steps=1).save(tmp_path / "run.safetensors")
    minip2p.load(folder).open(tmp_path / "run.safetensors")
    update_json(folder / component / "config.json", **fields)
    with pytest.raises(ValueError, match="another model"):
        minip2p.load(folder).open(tmp_path / "run.safetensors")
