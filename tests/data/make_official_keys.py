"""Builds every published Stable Diffusion, without weights, from the codes it was published with, and keeps the names
and shapes of its tensors.

    python tests/data/make_official_keys.py V1 V2 XL INSTRUCT INPAINT OPEN_CLIP     each the folder of a checkout:

CompVis/stable-diffusion, Stability-AI/stablediffusion, Stability-AI/generative-models, timothybrooks/instruct-pix2pix,
runwayml/stable-diffusion and mlfoundations/open_clip. It takes diffusers, transformers, einops and PyYAML as well.

official/FAMILY.json.gz, of sd15, sd21, sdxl, instruct and inpaint:
  folder  {part: {name: shape}}  diffusers' and transformers' layout, of the configurations in those folders
  single  {name: shape}          the weights in a single file, in the names of the original code
  extras  {name: shape}          what else that code registers, and such a file may have: the schedule's buffers, the
                                 text encoders' position_ids and logit_scale, model_ema's counters and its first few
"""

import gzip
import importlib
import json
import sys
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import torch
import transformers
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from parity import SD15_UNET, SD15_VAE, SD21_UNET, SDXL_UNET  # noqa: E402

EMA_KEPT = 6
ABSENT = """clip fsspec kornia omegaconf omegaconf.listconfig pytorch_lightning torchvision.ops.misc torchvision.utils
pytorch_lightning.utilities.distributed taming.modules.vqvae.quantize""".split()
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)


def text_encoder(config, projection=None):
    """transformers' text encoder. The class with a projection keeps the prefix text_model. that all published files
    have, and the class without has lost in transformers 5: of the former, then, without its projection."""
    config = transformers.CLIPTextConfig(**config, projection_dim=projection or 512)
    model = transformers.CLIPTextModelWithProjection(config)
    if not projection:
        del model.text_projection
    return model


def folder_of(unet, first, second=None):
    """{part: {name: shape}} in diffusers' layout."""
    made = {"unet": UNet2DConditionModel(**unet), "vae": AutoencoderKL(**SD15_VAE), "text_encoder": text_encoder(first)}
    if second:
        made["text_encoder_2"] = text_encoder(second, second["hidden_size"])
    return {part: shapes(module) for part, module in made.items()}


class Absent(ModuleType):
    """A module that no checkout has and nothing here needs: its every name is a class of modules that do nothing."""

    def __getattr__(self, name):
        return type(name, (torch.nn.Module,), {"__init__": lambda self, *_, **__: torch.nn.Module.__init__(self)})


@contextmanager
def importing(folder, clip):
    """While open, modules are imported from this folder; afterwards they are forgotten: checkouts share their names."""
    known, path = set(sys.modules), list(sys.path)
    sys.modules.update({name: Absent(name) for name in ABSENT} | {"open_clip": clip})
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            del sys.modules[name]


def clip_of_the_time(*_, **__):
    """What stands in for CLIPTextModel.from_pretrained: it had position_ids among the weights then."""
    model = text_encoder(CLIP_L)
    embeddings = model.text_model.embeddings
    embeddings.register_buffer("position_ids", embeddings.position_ids)
    return model


def towers_of(checkout):
    """What stands in for open_clip.create_model_and_transforms, of the checkout's own class and configurations."""
    package = ModuleType("open_clip")  # without what its __init__ imports: the training code too
    package.__path__ = [str(checkout / "src" / "open_clip")]
    with importing(checkout, package):
        CLIP = importlib.import_module("open_clip.model").CLIP
    configs = checkout / "src" / "open_clip" / "model_configs"
    return lambda arch, **_: (CLIP(**json.loads((configs / f"{arch}.json").read_text(encoding="utf-8"))), None, None)


def original(checkout, config, towers):
    """{name: shape} of the whole model that a checkout's configuration file describes, with moving averages."""
    config = yaml.safe_load((checkout / config).read_text(encoding="utf-8"))["model"]
    module, _, name = config["target"].rpartition(".")
    nested = checkout / "stable_diffusion"  # where instruct-pix2pix has its ldm
    with (
        importing(nested if nested.is_dir() else checkout, SimpleNamespace(create_model_and_transforms=towers)),
        redirect_stdout(sys.stderr),
        patch.object(transformers.CLIPTokenizer, "from_pretrained"),
        patch.object(transformers.CLIPTextModel, "from_pretrained", clip_of_the_time),
        patch("torch.linspace", partial(torch.linspace, device="cpu")),  # the schedule is made of values, and tested
        patch("torch.isnan", lambda _: torch.zeros((), device="cpu")),  # for NaN, which the meta device has none of
    ):
        return shapes(getattr(importlib.import_module(module), name)(**config["params"] | {"use_ema": True}))


def shapes(module):
    return {name: list(t.shape) for name, t in sorted(module.state_dict().items())}


def split(tensors):
    """The weights; the rest."""
    parts = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner."
    single = {k for k in tensors if k.startswith(parts) and not k.endswith(("position_ids", "logit_scale"))}
    left_out = [k for k in tensors if k.startswith("model_ema.") and tensors[k]][EMA_KEPT:]  # not its two counters
    extras = tensors.keys() - single - set(left_out)
    return [{k: tensors[k] for k in tensors if k in kept} for kept in (single, extras)]


def main(v1, v2, xl, instruct, inpaint, open_clip):
    stable = "configs/stable-diffusion"
    families = {
        "sd15": ((SD15_UNET, CLIP_L), v1, f"{stable}/v1-inference.yaml"),
        "sd21": ((SD21_UNET, CLIP_H), v2, f"{stable}/v2-inference-v.yaml"),
        "sdxl": ((SDXL_UNET, CLIP_L, CLIP_G), xl, "configs/inference/sd_xl_base.yaml"),
        "instruct": ((SD15_UNET | {"in_channels": 8}, CLIP_L), instruct, "configs/generate.yaml"),
        "inpaint": ((SD15_UNET | {"in_channels": 9}, CLIP_L), inpaint, f"{stable}/v1-inpainting-inference.yaml"),
    }
    for family, (parts, checkout, config) in families.items():
        with torch.device("meta"):
            single, extras = split(original(checkout, config, towers_of(open_clip)))
            made = {"folder": folder_of(*parts), "single": single, "extras": extras}
        text = json.dumps(made, separators=(",", ":"))
        (HERE / "official" / f"{family}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        print(family, {part: len(names) for part, names in made["folder"].items()}, len(single), len(extras))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
