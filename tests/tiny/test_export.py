"""The folder that the training writes."""

import json
from dataclasses import replace

import pytest
import torch

import minip2p
from minip2p.config import SchedulerConfig, UNetConfig, VAEConfig
from minip2p.tiny.export import export_model, make_text_encoder, trained_steps
from minip2p.unet import UNet
from minip2p.vae import VAE


def test_the_exported_folder_opens_with_the_same_weights_in_float16(tmp_path):
    torch.manual_seed(0)
    width = 8
    unet = UNet(
        UNetConfig(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            cross_attention_dim=width,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            norm_num_groups=4,
        )
    )
    vae = VAE(VAEConfig(block_out_channels=(8,), norm_num_groups=4))
    text, steps = make_text_encoder(width), {"vae": 3, "unet": 5}
    export_model(
        tmp_path, vae, unet, text, SchedulerConfig(steps_offset=1), scaling_factor=0.25, trained=steps, words=["cat"]
    )
    model = minip2p.load(tmp_path)
    assert model.vae.config.scaling_factor == 0.25
    assert trained_steps(tmp_path) == steps
    assert json.loads((tmp_path / "minip2p.json").read_text())["words"] == ["cat"]
    assert model.default_guidance == json.loads((tmp_path / "minip2p.json").read_text())["guidance"]
    for module, loaded in ((unet, model.unet), (vae, model.vae), (text, model.text.encoders["text_encoder"])):
        tensors = loaded.state_dict()
        assert tensors.keys() == module.state_dict().keys()
        assert all(torch.equal(t.half().float(), tensors[name]) for name, t in module.state_dict().items())


def test_weights_without_their_number_of_steps_are_an_error(tmp_path):
    (tmp_path / "minip2p.json").write_text('{"guidance": 4.0, "_trained": {"vae": 3}}')
    with pytest.raises(ValueError, match="does not say how many steps the weights were trained"):
        trained_steps(tmp_path)


def test_beside_the_model_that_has_the_other_parts_only_the_unet_is_written(cpu_model, tmp_path):
    """What was there of another model goes. Elsewhere and in the place of that model itself the folder is complete."""
    cpu_model.save(tmp_path / "all")
    text = cpu_model.text.encoders["text_encoder"]
    unet = UNet(replace(cpu_model.unet.config, block_out_channels=(8, 8, 8), norm_num_groups=4, attention_head_dim=2))

    def write(folder):
        export_model(
            folder,
            cpu_model.vae,
            unet,
            text,
            cpu_model.scheduler.config,
            scaling_factor=cpu_model.vae.config.scaling_factor,
            trained={"vae": 0, "unet": 1},
            words=[],
            parts_from=tmp_path / "all",
        )

    (tmp_path / "student/vae").mkdir(parents=True)
    write(tmp_path / "student")
    write(tmp_path / "elsewhere/student")
    write(tmp_path / "all")
    names = {
        folder: {path.name for path in (tmp_path / folder).iterdir() if path.is_dir()}
        for folder in ("student", "elsewhere/student", "all")
    }
    complete = {"unet", "scheduler", "vae", "text_encoder", "tokenizer"}
    assert names == {"student": {"unet", "scheduler"}, "elsewhere/student": complete, "all": complete}
    pipe = minip2p.load(tmp_path / "student")
    assert torch.equal(pipe.vae.decoder.conv_in.weight, cpu_model.vae.decoder.conv_in.weight)
    assert trained_steps(tmp_path / "student") == {"vae": 0, "unet": 1}
