"""Writes the names and shapes of the tensors of every published Stable Diffusion to tests/data/official.

It builds the models, without weights, with the code that they were published with:

    python tests/data/make_official_keys.py V1 V2 XL INSTRUCT INPAINT OPEN_CLIP

The arguments are the folders of checkouts of CompVis/stable-diffusion, Stability-AI/stablediffusion,
Stability-AI/generative-models, timothybrooks/instruct-pix2pix, runwayml/stable-diffusion and mlfoundations/open_clip.
It also needs diffusers, transformers, einops and PyYAML.

official/FAMILY.json.gz, for sd15, sd21, sdxl, instruct and inpaint:
  folder  {component: {name: shape}}  diffusers' and transformers' layout, for the configurations in those folders
  single  {name: shape}               the weights in a single file, with the names of the original code
  extras  {name: shape}               what else that code registers, and such a file may contain: buffers of the noise
                                      schedule, the text encoders' position_ids and logit_scale, the counters of
                                      model_ema and a few of its tensors
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
sys.path.insert(0, str(HERE.parent / "support"))
from parity import OFFICIAL_UNETS, SD15_VAE  # noqa: E402

EMA_TENSORS = 6  # how many tensors of the moving average are written
# Modules that the checkouts import and that are not needed to build the models.
ABSENT = """clip fsspec kornia omegaconf omegaconf.listconfig pytorch_lightning torchvision.ops.misc torchvision.utils
pytorch_lightning.utilities.distributed taming.modules.vqvae.quantize""".split()
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)


def text_encoder(config, projection=None):
    """transformers' text encoder, with the prefix text_model. that the names in all published files have.

    The class without a projection lost the prefix in transformers 5, so the projection is deleted from the other class.
    """
    config = transformers.CLIPTextConfig(**config, projection_dim=projection or 512)
    model = transformers.CLIPTextModelWithProjection(config)
    if not projection:
        del model.text_projection
    return model


def folder_of(unet, first, second=None):
    """{component: {name: shape}} in diffusers' layout."""
    components = {
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**SD15_VAE),
        "text_encoder": text_encoder(first),
    }
    if second:
        components["text_encoder_2"] = text_encoder(second, second["hidden_size"])
    return {name: shapes(module) for name, module in components.items()}


class Absent(ModuleType):
    """Stands in for a module that is not installed. Every name in it is a class of modules that do nothing."""

    def __getattr__(self, name):
        return type(name, (torch.nn.Module,), {"__init__": lambda self, *_, **__: torch.nn.Module.__init__(self)})


@contextmanager
def importing(folder, clip):
    """Imports modules from this folder. Afterwards they are forgotten, since the checkouts use the same names.

    clip: the module to import as open_clip.
    """
    known, path = set(sys.modules), list(sys.path)
    sys.modules.update({name: Absent(name) for name in ABSENT} | {"open_clip": clip})
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            del sys.modules[name]


def old_clip_encoder(*_, **__):
    """Stands in for CLIPTextModel.from_pretrained, whose model had position_ids among its weights at the time."""
    model = text_encoder(CLIP_L)
    embeddings = model.text_model.embeddings
    embeddings.register_buffer("position_ids", embeddings.position_ids)
    return model


def openclip_builder(checkout):
    """Stands in for open_clip.create_model_and_transforms, with the checkout's own class and configurations."""
    package = ModuleType("open_clip")  # its own __init__ would import the training code
    package.__path__ = [str(checkout / "src" / "open_clip")]
    with importing(checkout, package):
        CLIP = importlib.import_module("open_clip.model").CLIP
    configs = checkout / "src" / "open_clip" / "model_configs"
    return lambda arch, **_: (CLIP(**json.loads((configs / f"{arch}.json").read_text(encoding="utf-8"))), None, None)


def original(checkout, config, openclip):
    """{name: shape} of the model that a checkout's configuration file describes, with moving averages."""
    config = yaml.safe_load((checkout / config).read_text(encoding="utf-8"))["model"]
    module, _, name = config["target"].rpartition(".")
    nested = checkout / "stable_diffusion"  # the place of ldm in instruct-pix2pix
    with (
        importing(nested if nested.is_dir() else checkout, SimpleNamespace(create_model_and_transforms=openclip)),
        redirect_stdout(sys.stderr),
        patch.object(transformers.CLIPTokenizer, "from_pretrained"),
        patch.object(transformers.CLIPTextModel, "from_pretrained", old_clip_encoder),
        patch("torch.linspace", partial(torch.linspace, device="cpu")),  # the schedule is checked by its values
        patch("torch.isnan", lambda _: torch.zeros((), device="cpu")),  # the check for NaN
    ):
        return shapes(getattr(importlib.import_module(module), name)(**config["params"] | {"use_ema": True}))


def shapes(module):
    return {name: list(t.shape) for name, t in sorted(module.state_dict().items())}


def split(tensors):
    """Splits the tensors into the weights and the extras."""
    prefixes = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner."
    single = {k for k in tensors if k.startswith(prefixes) and not k.endswith(("position_ids", "logit_scale"))}
    left_out = [k for k in tensors if k.startswith("model_ema.") and tensors[k]][EMA_TENSORS:]  # not its two counters
    extras = tensors.keys() - single - set(left_out)
    return [{k: tensors[k] for k in tensors if k in group} for group in (single, extras)]


def main(v1, v2, xl, instruct, inpaint, open_clip):
    stable = "configs/stable-diffusion"
    families = {
        "sd15": ([CLIP_L], v1, f"{stable}/v1-inference.yaml"),
        "sd21": ([CLIP_H], v2, f"{stable}/v2-inference-v.yaml"),
        "sdxl": ([CLIP_L, CLIP_G], xl, "configs/inference/sd_xl_base.yaml"),
        "instruct": ([CLIP_L], instruct, "configs/generate.yaml"),
        "inpaint": ([CLIP_L], inpaint, f"{stable}/v1-inpainting-inference.yaml"),
    }
    for family, (text_encoders, checkout, config) in families.items():
        with torch.device("meta"):
            single, extras = split(original(checkout, config, openclip_builder(open_clip)))
            content = {"folder": folder_of(OFFICIAL_UNETS[family], *text_encoders), "single": single, "extras": extras}
        text = json.dumps(content, separators=(",", ":"))
        (HERE / "official" / f"{family}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        print(family, {name: len(names) for name, names in content["folder"].items()}, len(single), len(extras))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
