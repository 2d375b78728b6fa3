"""Builds every published Stable Diffusion, without weights, from the codes it was published with, and keeps the names
and shapes of its tensors.

    python tests/data/make_official_keys.py V1 V2 XL INSTRUCT INPAINT OPEN_CLIP     folders: checkouts of

CompVis/stable-diffusion, Stability-AI/stablediffusion, Stability-AI/generative-models, timothybrooks/instruct-pix2pix,
runwayml/stable-diffusion and mlfoundations/open_clip. It takes diffusers, transformers, einops and PyYAML as well.

official/FAMILY.json.gz, of sd15, sd21, sdxl, instruct and inpaint:
  folder  {part: {name: shape}}  diffusers' and transformers' layout, of the configurations in those folders
  single  {name: shape}          the weights in a single file, in the names of the original code
  extras  {name: shape}          what such a file can have besides: whatever the original code registers and no forward
                                 pass of the three parts reads, such as the schedule's buffers, the text encoder's
                                 position_ids and logit_scale, and the first EMA_KEPT tensors of model_ema
"""

import gzip
import importlib
import json
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
import transformers
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from parity import SD15_UNET, SD15_VAE, SD21_UNET, SDXL_UNET  # noqa: E402

EMA_KEPT = 6
ABSENT = "clip fsspec kornia omegaconf open_clip pytorch_lightning taming torchvision".split()
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
              projection_dim=512, hidden_act="gelu")  # fmt: skip
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
              projection_dim=1280, hidden_act="gelu")  # fmt: skip


def text_encoder(config, projects=False):
    """transformers' text encoder. The class with a projection keeps the prefix text_model. that all published files
    have, and the class without has lost in transformers 5: of the former, then, without its projection."""
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    if not projects:
        del model.text_projection
    return model


def folders(unet, first, second=None):
    """{part: module} in diffusers' layout."""
    made = {"unet": UNet2DConditionModel(**unet), "vae": AutoencoderKL(**SD15_VAE), "text_encoder": text_encoder(first)}
    return made | ({"text_encoder_2": text_encoder(second, projects=True)} if second else {})


class Absent:
    """Finds, for every module that is in none of the checkouts and not needed, one whose every name is a class of
    modules that do nothing."""

    class Module(ModuleType):
        __path__ = ()

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (torch.nn.Module,), {"__init__": lambda self, *_, **__: torch.nn.Module.__init__(self)})

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] in ABSENT else None

    def create_module(self, spec):
        return self.Module(spec.name)

    def exec_module(self, module):
        pass


@contextmanager
def importing(folder, *absent):
    """While open, modules are imported from this folder; afterwards they are forgotten: two checkouts share names."""
    known, path, finders = dict(sys.modules), list(sys.path), list(sys.meta_path)
    sys.path.insert(0, str(folder))
    sys.meta_path.extend(absent)
    try:
        yield
    finally:
        sys.path[:], sys.meta_path[:] = path, finders
        for name in set(sys.modules) - set(known):
            del sys.modules[name]


def position_ids_kept(*_, **__):
    """What stands in for CLIPTextModel.from_pretrained: transformers of that time saved position_ids."""
    model = text_encoder(CLIP_L)
    embeddings = model.text_model.embeddings
    embeddings.register_buffer("position_ids", embeddings.position_ids)
    return model


def open_clip_towers(folder):
    """What stands in for open_clip.create_model_and_transforms, of the checkout's own classes and configurations."""
    package = folder / "src" / "open_clip"
    with importing(folder):
        sys.modules["open_clip"] = ModuleType("open_clip")  # its __init__ would import the training code too
        sys.modules["open_clip"].__path__ = [str(package)]
        CLIP = importlib.import_module("open_clip.model").CLIP

    def create(arch, **_):
        return CLIP(**json.loads((package / "model_configs" / f"{arch}.json").read_text(encoding="utf-8"))), None, None

    return create


def original(folder, config, towers):
    """The whole model of a checkout's configuration file, with moving averages."""
    config = yaml.safe_load((folder / config).read_text(encoding="utf-8"))["model"]
    module, _, name = config["target"].rpartition(".")
    nested = folder / "stable_diffusion"  # where instruct-pix2pix has its ldm
    with (
        importing(nested if nested.is_dir() else folder, Absent()),
        patch.object(transformers.CLIPTokenizer, "from_pretrained"),
        patch.object(transformers.CLIPTextModel, "from_pretrained", position_ids_kept),
        patch("torch.isnan", lambda x: torch.zeros((), device="cpu")),  # the schedule is tested: meta has no values
    ):
        importlib.import_module("open_clip").create_model_and_transforms = towers
        return getattr(importlib.import_module(module), name)(**config["params"] | {"use_ema": True})


def shapes(module):
    return {name: list(t.shape) for name, t in sorted(module.state_dict().items())}


def split(tensors):
    """The weights; the rest."""
    parts = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner."
    unread = "position_ids", "logit_scale"
    single = {k: v for k, v in tensors.items() if k.startswith(parts) and not k.endswith(unread)}
    averages = [k for k in tensors if k.startswith("model_ema.") and k.count(".") == 1 and tensors[k]][EMA_KEPT:]
    return single, {k: v for k, v in tensors.items() if k not in single and k not in averages}


def main(v1, v2, xl, instruct, inpaint, open_clip):
    towers = open_clip_towers(open_clip)
    stable = "configs/stable-diffusion"
    with torch.device("meta"):
        families = {
            "sd15": (folders(SD15_UNET, CLIP_L), v1, f"{stable}/v1-inference.yaml"),
            "sd21": (folders(SD21_UNET, CLIP_H), v2, f"{stable}/v2-inference-v.yaml"),
            "sdxl": (folders(SDXL_UNET, CLIP_L, CLIP_G), xl, "configs/inference/sd_xl_base.yaml"),
            "instruct": (folders(SD15_UNET | {"in_channels": 8}, CLIP_L), instruct, "configs/generate.yaml"),
            "inpaint": (
                folders(SD15_UNET | {"in_channels": 9}, CLIP_L),
                inpaint,
                f"{stable}/v1-inpainting-inference.yaml",
            ),
        }
        for family, (parts, folder, config) in families.items():
            single, extras = split(shapes(original(folder, config, towers)))
            made = {"folder": {part: shapes(m) for part, m in parts.items()}, "single": single, "extras": extras}
            text = json.dumps(made, separators=(",", ":"))
            path = HERE / "official" / f"{family}.json.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(text.encode(), mtime=0))
            print(family, {part: len(names) for part, names in made["folder"].items()}, len(single), len(extras))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
