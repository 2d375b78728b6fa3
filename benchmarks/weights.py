"""Writes a model with the configuration of Stable Diffusion 1.5 and random weights: python benchmarks/weights.py FOLDER

It has what a benchmark of speed needs of the real one, in diffusers' layout: the sizes, and activations that neither
vanish nor explode.
"""

import argparse
import shutil
from pathlib import Path

import torch
from common import randomize
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from minip2p.io.files import shipped_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder to write")
    folder, generator = parser.parse_args().folder, torch.Generator().manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )  # all other defaults are SD 1.5's
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    tokenizer = shipped_weights("tiny") / "tokenizer"
    size = len((tokenizer / "vocab.json").read_text(encoding="utf-8").split('":')) - 1
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
        )
    )
    with torch.no_grad():
        for name, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
            randomize(module, generator)
            module.save_pretrained(folder / name)
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    shutil.copy(shipped_weights("tiny") / "model_index.json", folder)


if __name__ == "__main__":
    main()
