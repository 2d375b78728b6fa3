"""The configurations that are inferred from a single file are those of the folder that it was made from."""

import json

import pytest
from safetensors.torch import load_file, save_file

from minip2p.checkpoints.inferred_config import OFFICIAL_TEXT_LAYERS
from minip2p.checkpoints.single_file import SingleFile
from minip2p.config import UNetConfig, VAEConfig

PER_LEVEL = ("attention_head_dim", "transformer_layers_per_block")


@pytest.mark.parametrize(
    "name, metadata",
    [
        ("SD 1", {}),
        ("SDXL", {}),
        ("SD 2 base", {"modelspec.prediction_type": "epsilon"}),
        ("SD 2, v", {"modelspec.prediction_type": "v"}),
    ],
)
def test_all_that_a_folders_configurations_state_is_inferred(family, tmp_path, name, metadata):
    """Except for the size of a small model's pictures, and for upcast_attention, which changes nothing."""
    _, folder, file = family(name)
    save_file(load_file(file), tmp_path / "a.safetensors", metadata)
    single = SingleFile(tmp_path / "a.safetensors", None)

    def stated(component, file_name="config.json"):
        return json.loads((folder / component / file_name).read_text())

    for component, config_class in (("unet", UNetConfig), ("vae", VAEConfig)):
        inferred, expected = (config_class.from_dict(d) for d in (single.config(component), stated(component)))
        for field in config_class.__dataclass_fields__.keys() - {"sample_size", "upcast_attention"}:
            values = [getattr(config, field) for config in (inferred, expected)]
            if field in PER_LEVEL:
                values = [inferred.per_level(value) for value in values]
            assert values[0] == values[1], field
    scheduler = single.config("scheduler")
    expected = stated("scheduler", "scheduler_config.json")
    assert {field: expected[field] for field in scheduler} == scheduler
    for component in ("text_encoder", "text_encoder_2") if name == "SDXL" else ("text_encoder",):
        inferred = {field: value for field, value in single.config(component).items() if field != "architectures"}
        expected = stated(component)
        assert {field: expected[field] for field in inferred} == inferred


def test_a_stable_diffusion_2_that_does_not_state_what_it_predicts_is_one_clear_line(family):
    message = "predicts noise or v, and the file does not say which: pass a folder that does as config"
    with pytest.raises(ValueError, match=message):
        SingleFile(family("SD 2, v")[2], None).config("scheduler")


def test_the_official_text_encoders_are_recognized_by_their_width():
    assert dict(OFFICIAL_TEXT_LAYERS) == {768: 12, 1024: 23, 1280: 32}
