"""The names of the layers of the published models, and the lists of names that other tools' own code wrote."""

import json
import lzma
import re
from functools import cache

import torch
from parity import OFFICIAL_UNETS, on_meta
from paths import DATA, ROOT
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from minip2p.checkpoints.adapter_names import LayerNames
from minip2p.checkpoints.key_maps import compvis_unet_key
from minip2p.checkpoints.lora import weighted_layers
from minip2p.config import UNetConfig
from minip2p.unet import UNet

TEXT_LAYERS = {"sd15": 12, "sd21": 23, "sdxl": 12}


@cache
def tools():
    """tests/data/tools/names.json.xz, which the tools' own converters, savers and networks wrote for models of the
    official sizes on the meta device, with the layer of every name as these tools' own maps have it.

    adapters.sets: a family, and for each layer ("component name") what tools call it. adapters.forms: a tool, one of
    the forms in which it writes adapters, a set, the suffixes that come after each of its names, and the kind that it
    is if it is no LoRA. checkpoints: tool -> family -> the tensors of its whole checkpoints, as the difference from the
    official ones: more {name: shape} and less [names].
    """
    return json.loads(lzma.decompress((DATA / "tools" / "names.json.xz").read_bytes()))


def tool_row(tool):
    """The numbers in the row of a tool in the table of names in docs/models.md."""
    rows = re.findall(rf"^\| {tool} \|(.*)\|$", (ROOT / "docs/models.md").read_text(encoding="utf-8"), re.MULTILINE)
    (row,) = rows
    return [int(cell.replace(" ", "").replace("–", "0")) for cell in row.split("|")]


class OfficialModel:
    """The names of all layers of an official model, without its weights."""

    def __init__(self, kind):
        self.config = UNetConfig.from_dict(OFFICIAL_UNETS[kind], kind)
        networks = {
            "unet": on_meta(UNet, self.config),
            "text_encoder": on_meta(CLIPTextModel, CLIPTextConfig(num_hidden_layers=TEXT_LAYERS[kind], hidden_size=64)),
        }
        if kind == "sdxl":
            config = CLIPTextConfig(num_hidden_layers=32, hidden_size=64)
            networks["text_encoder_2"] = on_meta(CLIPTextModelWithProjection, config)
        self.layers = {name: list(weighted_layers(network)) for name, network in networks.items()}
        matrices = (torch.nn.Linear, torch.nn.Conv2d)
        self.matrices = {
            component: [name for name, layer in network.named_modules() if isinstance(layer, matrices)]
            for component, network in networks.items()
        }
        self.names = LayerNames.of(self.layers, self.config)

    def original(self, layer):
        return compvis_unet_key(f"{layer}.weight", self.config).removesuffix(".weight")
