"""A folder in PIE-Bench's layout, as the published file has it."""

import json

import numpy as np
from PIL import Image


def write_pie_case(folder, **changes):
    """Writes a folder with one case, with changed fields. Returns the folder."""
    pictures = folder / "annotation_images" / "0_random"
    pictures.mkdir(parents=True)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(pictures / "a b.png")
    fields = {
        "image_path": "0_random/a b.png",
        "original_prompt": "a [red] car on the street",
        "editing_prompt": "a [blue] car on the street",
        "editing_instruction": "",
        "editing_type_id": "6",
        "blended_word": "car car",
        "mask": [600, 50],
    } | changes
    (folder / "mapping_file.json").write_text(json.dumps({"000": fields}))
    return folder
