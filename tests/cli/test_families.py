"""The command line with other models than the embedded one: single files, LoRAs, models that read an image."""

import shutil

import pytest
import torch
from families import IMAGE_FAMILIES, PROMPT, copy_folder, smooth_picture
from PIL import Image
from safetensors.torch import save_file

import minip2p
from minip2p.cli import main
from minip2p.io.images import to_pil


@pytest.fixture
def picture(tmp_path):
    """A file with a picture, whose name has a space in it, and the picture."""
    image = to_pil(smooth_picture())
    image.save(tmp_path / "a b.png")
    return tmp_path / "a b.png", image


@pytest.fixture
def error_of(capsys):
    """Runs a command that must fail, and returns its error: one line, and no traceback."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's own errors
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and "Traceback" not in error
        return error

    return run


def run(*arguments):
    assert main.main([str(argument) for argument in arguments]) == 0


def pixels(file):
    with Image.open(file) as image:
        return image.tobytes()


def parameters(file):
    with Image.open(file) as image:
        return image.text["parameters"]


def test_a_single_file_and_another_vae(family, tmp_path, error_of):
    _, folder, file = family("SD 1")
    out = tmp_path / "a.png"
    command = ["generate", PROMPT, "--steps", 2, "--size", "32x32", "-o", out, "--model", file]
    run(*command, "--config", folder, "--vae", folder / "vae")
    assert pixels(out) == minip2p.load(folder).generate(PROMPT, steps=2, size=(32, 32)).image.tobytes()
    assert f"Model: {file.name}, VAE: vae" in parameters(out)
    error = error_of(*command, "--overwrite")
    assert "a single file has no tokenizer" in error and error.count("\n") == 1


def test_a_lora_is_merged_with_its_scale(family, tmp_path, error_of):
    folder, layer, file = family("SD 1")[1], "mid_block.attentions.0.proj_in", tmp_path / "a.safetensors"
    model = minip2p.load(folder)
    outputs, inputs = model.unet.get_parameter(f"{layer}.weight").shape[:2]
    g = torch.Generator().manual_seed(0)
    tensors = {"lora_A": torch.randn(2, inputs, generator=g), "lora_B": torch.randn(outputs, 2, generator=g)}
    save_file({f"unet.{layer}.{end}.weight": tensor for end, tensor in tensors.items()}, file)
    command = ["generate", PROMPT, "--model", folder, "--steps", 2, "-o", tmp_path / "a.png"]
    for options, expected in (
        ([], model),
        (["--lora", f"{file}:0.5"], model.merged(file, 0.5)),
        (["--lora", file], model.merged(file)),
    ):
        run(*command, *options, "--overwrite")
        assert pixels(tmp_path / "a.png") == expected.generate(PROMPT, steps=2).image.tobytes()
    assert "the scale after the colon must be a number" in error_of(*command, "--overwrite", "--lora", f"{file}:much")


def test_an_embedding_is_a_word_of_the_prompt(family, tmp_path, error_of):
    folder, file = family("SD 1")[1], tmp_path / "learned_embeds.safetensors"
    save_file({"<my-toy>": torch.randn(2, 64, generator=torch.Generator().manual_seed(0))}, file)
    command = ["generate", "a <my-toy>", "--model", folder, "--steps", 2, "-o", tmp_path / "a.png"]
    run(*command, "--embedding", file)
    expected = minip2p.load(folder).with_embedding(file).generate("a <my-toy>", steps=2)
    assert pixels(tmp_path / "a.png") == expected.image.tobytes()
    assert "Embedding: <my-toy> (learned_embeds.safetensors)" in parameters(tmp_path / "a.png")
    assert "toy.pt: is a pickle" in error_of(*command, "--overwrite", "--embedding", pickled(tmp_path / "toy.pt"))


def pickled(file):
    file.write_bytes(b"\x80\x02}q\x00.")
    return file


def test_instruct_takes_the_model_that_ships_where_none_is_named(tmp_path, picture):
    file, image = picture
    run("instruct", file, "make it snow", "-o", tmp_path / "snow.png", "--steps", 1, "--size", "64x64")
    expected = minip2p.load("tiny-instruct").instruct(image, "make it snow", steps=1, size=(64, 64))
    assert pixels(tmp_path / "snow.png") == expected.image.tobytes()


def test_instruct_writes_a_picture_and_a_run_that_can_be_edited(family, tmp_path, picture):
    (file, image), folder, out = picture, family("InstructPix2Pix")[1], tmp_path / "out.png"
    options = ["--steps", 2, "--picture-guidance", 1.2, "--record", tmp_path / "run.safetensors"]
    run("instruct", file, "make it snow", "--model", folder, "-o", out, *options)
    expected = minip2p.load(folder).instruct(image, "make it snow", steps=2, image_guidance_scale=1.2)
    assert pixels(out) == expected.image.tobytes()
    assert "Picture guidance: 1.2" in parameters(out) and "a b.png" in parameters(out)
    edited = tmp_path / "edited.png"
    run("edit", tmp_path / "run.safetensors", "make it rain", "--model", folder, "-o", edited)
    assert edited.exists()


def test_inpaint_paints_where_the_mask_is_white(family, tmp_path, picture):
    (file, image), folder, out = picture, family("inpainting")[1], tmp_path / "out.png"
    mask, white = Image.new("RGBA", image.size), torch.zeros(32, 32)
    mask.paste((255, 255, 255, 255), (8, 8, 24, 24))
    mask.save(tmp_path / "mask.png")
    white[8:24, 8:24] = 1
    run("inpaint", file, PROMPT, "--mask", tmp_path / "mask.png", "--model", folder, "--steps", 2, "-o", out)
    assert pixels(out) == minip2p.load(folder).inpaint(image, white, PROMPT, steps=2).image.tobytes()


def test_what_a_model_cannot_do_is_one_clear_line(family, tmp_path, picture, error_of):
    file, out = picture[0], tmp_path / "out.png"
    text, instruct, inpaint = (family(name)[1] for name in ("SD 1", *IMAGE_FAMILIES))
    for arguments, message in (
        (["instruct", file, "snow", "--model", text], "this model follows no instructions"),
        (["inpaint", file, "snow", "--mask", file, "--model", text], "this model does not paint into a picture"),
        (["generate", PROMPT, "--model", inpaint], "use instruct, or where it takes a mask, inpaint"),
        (
            ["instruct", file, "snow", "--model", instruct, "--picture-guidance", "nan"],
            "--picture-guidance must be a finite number",
        ),
        (["inpaint", file, "snow", "--model", inpaint], "the following arguments are required: --mask"),
        (
            ["bench-edits", "--count", 1, "--model", inpaint],
            "this model makes a picture from a picture",
        ),
        (
            ["instruct", file, "snow", "--model", instruct, "--size", "1000000x1000000"],
            "is too large: 67108864 are the most",
        ),
        (
            ["generate", PROMPT, "--model", text, "--size", "1000000x1000000"],
            "is too large: 67108864 are the most",
        ),
    ):
        assert message in error_of(*arguments, "-o", tmp_path / "out" if arguments[0] == "bench-edits" else out), (
            arguments
        )
        assert not out.exists()


def test_inputs_and_weights_are_never_overwritten(family, tmp_path, picture, error_of):
    photo, out, message = picture[0], tmp_path / "out.png", "is an input and would be overwritten"
    folder = copy_folder(family("InstructPix2Pix")[1], tmp_path / "model")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    _, config, file = family("SD 1")
    single_file = tmp_path / "single.safetensors"
    shutil.copy(file, single_file)
    before = [path.read_bytes() for path in (weights, single_file, photo)]
    in_one_file = ["--model", single_file, "--config", config, "--steps", 1]
    for arguments in (
        ["instruct", photo, "x", "--model", folder, "--steps", 1, "-o", out, "--record", weights],
        ["instruct", photo, "x", "--model", folder, "--steps", 1, "-o", photo],
        ["generate", PROMPT, "-o", out, "--record", single_file, *in_one_file],
        ["invert", photo, PROMPT, "-o", single_file, *in_one_file],
    ):
        assert message in error_of(*arguments)
    assert [path.read_bytes() for path in (weights, single_file, photo)] == before and not out.exists()
