"""How well a model follows instructions, on the cases of `minip2p bench-edits`, each said in a sentence:

    python -m minip2p.evaluation.instruct_benchmark --model FOLDER -o FOLDER

The figures are those of `bench-edits`. A sheet shows the first cases. The results are in files, see
`minip2p.evaluation.result_files`, so that a run that was killed continues.
"""

import argparse
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from minip2p.checkpoints.components import RowCounter
from minip2p.errors import run_guarded
from minip2p.evaluation.edit_benchmark import Networks, measure_edit, result_files, training_size
from minip2p.evaluation.pie_bench import Case, read_cases
from minip2p.evaluation.result_files import Row
from minip2p.evaluation.tables import SHEET_CASES, json_line, markdown_tables, summarize
from minip2p.io import png, viz
from minip2p.io.files import write_text
from minip2p.io.images import fit_image, read_image
from minip2p.pipeline import Pipeline, load
from minip2p.planner.lexicon import article_for
from minip2p.sampling.progress import progress_bar
from minip2p.tiny.judge import Judge
from minip2p.tiny.scene_edits import INSTRUCTIONS, STYLE_NAMES
from minip2p.tiny.scenes import COLOURS, PLACE_PHRASES

METHOD = "instruct"  # the name of the rows
STEPS, PICTURE_GUIDANCE = 15, 1.5


def case_instruction(case: Case) -> str:
    """The instruction of a case that ships: the first wording of its kind, as `scene_edits.instruction_for` has it."""
    expected = case.expected or {}
    if case.kind == "style":
        return INSTRUCTIONS["style"][0].format(style=STYLE_NAMES[expected["style"]][0])
    if case.kind == "background":
        return INSTRUCTIONS["background"][0].format(place=PLACE_PHRASES[expected["background"]][0])
    if case.kind == "colour":
        ((name, colour),) = expected["colours"].items()
        return INSTRUCTIONS["colour"][0].format(old=name, colour=colour)
    if case.kind == "remove":
        return INSTRUCTIONS["remove"][0].format(old=case.blend["source"][0])
    (new,) = case.blend["target"]
    if case.kind == "add":  # its colour is in the caption
        match = re.search(rf"\b({'|'.join(COLOURS)}) {new}\b", case.target)
        words = match[0] if match else new
        return INSTRUCTIONS["add"][0].format(a_new=f"{article_for(words)} {words}")
    return INSTRUCTIONS["object"][0].format(old=case.blend["source"][0], a_new=f"{article_for(new)} {new}")


def run_cases(
    pipe: Pipeline,
    cases: Sequence[Case],
    folder: Path,
    *,
    steps: int = STEPS,
    guidance: float | None = None,
    picture_guidance: float = PICTURE_GUIDANCE,
) -> list[Row]:
    """Runs the unfinished cases and returns the rows of all. guidance, picture_guidance: of `Pipeline.instruct`; the
    seed of a case is its place among the cases. Raises ValueError for a folder of another model or other settings."""
    settings = {
        "model": pipe.components.fingerprint,
        "steps": steps,
        "guidance": pipe.default_guidance if guidance is None else guidance,
        "picture_guidance": picture_guidance,
        "cases": [f"{case.description} | {case_instruction(case)}" for case in cases],
    }
    files, networks = result_files(folder), Networks(Judge.load())
    files.claim(settings)
    files.read(cases, [METHOD])
    unfinished = [(seed, case) for seed, case in enumerate(cases) if not files.is_done(case, METHOD)]
    for seed, case in progress_bar(unfinished):
        before = fit_image(read_image(case.picture), training_size(pipe), "stretch")
        counter, began = RowCounter(), time.perf_counter()
        after = (
            pipe.counting(counter)
            .instruct(
                before,
                case_instruction(case),
                image_guidance_scale=picture_guidance,
                guidance_scale=guidance,
                seed=seed,
                steps=steps,
            )
            .picture
        )
        cost = {"rows": float(counter.rows), "seconds": time.perf_counter() - began}
        figures = measure_edit(case, before, after, networks) | cost
        files.write(case, METHOD, figures, after, case_instruction(case))
    return files.read(cases, [METHOD])


def instruct_sheet(folder: Path, cases: Sequence[Case]) -> Image.Image:
    """A column for each case: its photograph, and below it what the model made of it, with the instruction."""
    after = [(read_image(result_files(folder).picture_file(case, METHOD)), case_instruction(case)) for case in cases]
    return viz.grid([*((read_image(case.picture), case.source) for case in cases), *after], columns=len(cases))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases from the command line, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(description="How well a model follows instructions.")
    parser.add_argument("--model", required=True, help="the folder of a model such as InstructPix2Pix")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N cases")
    parser.add_argument("--count", type=int, metavar="N", help="of the cases (default: all)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"(default {STEPS})")
    parser.add_argument("--guidance", type=float, metavar="W", help="of the instruction (default: the model's)")
    parser.add_argument(
        "--picture-guidance",
        type=float,
        default=PICTURE_GUIDANCE,
        metavar="W",
        help=f"of the picture (default {PICTURE_GUIDANCE})",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder of the results")
    args = parser.parse_args(argv)

    def work() -> None:
        for name, value in (("guidance", args.guidance), ("picture-guidance", args.picture_guidance)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"--{name} must be a finite number, not {value}")
        cases = read_cases()
        if not 0 <= args.skip < len(cases) or (args.count is not None and args.count < 1):
            raise ValueError(f"there are {len(cases)} cases: --skip must be less, and --count at least 1")
        cases = cases[args.skip :][: args.count]
        pipe = load(args.model)
        if pipe.components.extra_channels != pipe.vae.config.latent_channels:
            raise ValueError(f"{args.model}: this model follows no instructions, as its UNet reads no picture")
        pipe.scheduler.timesteps(args.steps)
        rows = run_cases(
            pipe,
            cases,
            args.out,
            steps=args.steps,
            guidance=args.guidance,
            picture_guidance=args.picture_guidance,
        )
        summaries = summarize(rows, [METHOD])
        write_text(args.out / "table.md", markdown_tables(summaries))
        png.write_pngs([(args.out / "sheet.png", instruct_sheet(args.out, cases[:SHEET_CASES]), "")])
        print(markdown_tables(summaries), json_line(summaries), sep="\n")

    return run_guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
