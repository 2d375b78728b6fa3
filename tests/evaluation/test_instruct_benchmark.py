"""The benchmark of instructions: what the cases say, and the rows that it writes."""

import json

import pytest
import torch
from PIL import Image

import minip2p
from minip2p.evaluation.edit_benchmark import training_size
from minip2p.evaluation.instruct_benchmark import METHOD, case_instruction, main, run_cases
from minip2p.evaluation.make_cases import KINDS, scene_pair
from minip2p.evaluation.pie_bench import read_cases
from minip2p.io.images import fit_image, read_image
from minip2p.tiny.loop import seeded_generator
from minip2p.tiny.scene_edits import instruction_for
from minip2p.tiny.train_instruct import instruct_unet, write_instruct


def test_the_instructions_are_those_of_the_scenes_that_the_cases_were_made_from():
    for number, case in enumerate(read_cases()):
        pair = scene_pair(KINDS[number % len(KINDS)], number // len(KINDS))
        assert case_instruction(case) == instruction_for(*pair)


@pytest.fixture(scope="module")
def folder(cpu_model, tmp_path_factory):
    """A model whose UNet reads pictures, though it was not trained to."""
    unet = instruct_unet(cpu_model)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:].normal_(std=0.01, generator=seeded_generator(1))
    folder = tmp_path_factory.mktemp("models") / "instruct"
    write_instruct(folder, cpu_model, unet, 0)
    return folder


def test_rows_have_the_figures_of_the_pictures_and_a_run_continues(folder, device, tmp_path):
    pipe, case = minip2p.load(folder, device=str(device)), read_cases()[4]
    (row,) = run_cases(pipe, [case], tmp_path, steps=2, picture_guidance=1.2)
    assert row["rows"] == 6 and row["kind"] == case.kind and {"psnr", "structure", "success"} <= row.keys()
    before = fit_image(read_image(case.picture), training_size(pipe), "stretch")
    run = pipe.instruct(before, case_instruction(case), image_guidance_scale=1.2, seed=0, steps=2)
    written = fit_image(read_image(tmp_path / "pictures" / METHOD / f"{case.name}.png"), (128, 128))
    assert torch.allclose(written, run.picture, atol=1 / 127)
    assert run_cases(pipe, [case], tmp_path, steps=2, picture_guidance=1.2) == [row]
    with pytest.raises(ValueError, match="picture_guidance"):
        run_cases(pipe, [case], tmp_path, steps=2)


def test_the_command_prints_the_table(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--model", str(folder), "--skip", "300", "--steps", "1", "-o", str(out)]) == 0
    output = capsys.readouterr().out
    assert json.loads(output.splitlines()[-1])["cases"] == 1 and "| instruct |" in output
    assert (out / "table.md").read_text() in output
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width < sheet.height  # one case: the photograph, and below it what became of it


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "tiny"], "tiny: this model follows no instructions"),
        (["--model", "tiny", "--skip", "301"], "there are 301 cases"),
        (["--model", "tiny", "--guidance", "nan"], "--guidance must be a finite number"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
