"""Fingerprints of runs, to show that a refactoring changes no result.

    python tests/golden/golden.py write goldens.json      # before the change
    python tests/golden/golden.py compare goldens.json    # after it, on the same machine

Each run below is hashed to the bit: the latents of every step, or the tensor or bytes that the run produces. Kernels
differ between machines, so hashes are only meaningful on the machine that wrote them and none are committed.

Set OMP_NUM_THREADS=1 for both calls: the number of threads changes the order of sums.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import minip2p

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "tests/data/renders/00.png"
CAPTION = "on the street, a blue umbrella and a red lamp"
RECOLOURED = "on the street, a green umbrella and a red lamp"
CAT, TIGER = "a cat on the beach", "a tiger on the beach"
STEPS = 6

Result = Any  # a run, a tensor, a number, text or bytes


def digest(result: Result) -> str:
    """The SHA-256 of a result: of a run's latents, of a tensor's bytes, or of text."""
    if isinstance(result, list | tuple):
        return hashlib.sha256(" ".join(map(digest, result)).encode()).hexdigest()
    value = getattr(result, "latents", result)
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        value = str((value.dtype, tuple(value.shape))).encode() + value.flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(value if isinstance(value, bytes) else str(value).encode()).hexdigest()


def noise(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generation(pipe: Any) -> Iterator[tuple[str, Callable[[], Result]]]:
    yield "generate", lambda: pipe.generate(CAT, seed=1, steps=STEPS)
    yield "generate, guidance 1", lambda: pipe.generate(CAT, seed=1, steps=STEPS, guidance_scale=1.0)
    yield "generate, guidance 0", lambda: pipe.generate(CAT, seed=1, steps=STEPS, guidance_scale=0.0)
    yield "generate, guidance 7", lambda: pipe.generate(CAT, seed=1, steps=STEPS, guidance_scale=7.0)
    yield "generate, negative prompt", lambda: pipe.generate(CAT, seed=2, steps=STEPS, negative_prompt="fog")
    yield "generate, not square", lambda: pipe.generate(CAT, seed=3, steps=STEPS, size=(128, 96))
    yield "generate, odd latent size", lambda: pipe.generate(CAT, seed=3, steps=STEPS, size=(136, 72))
    yield "generate, given latents", lambda: pipe.generate(CAT, steps=STEPS, latents=noise(1, 4, 16, 16))
    rolled = minip2p.explicit(lambda probs, site: probs.roll(1, -1) if site.cross else probs)
    yield "generate, explicit ablation", lambda: pipe.generate(CAT, seed=1, steps=STEPS, attend=rolled)
    run = pipe.generate(CAT, seed=1, steps=STEPS)
    yield "maps", lambda: run.maps(["cat", "beach"])
    yield "mask, otsu", lambda: run.mask("cat")
    yield "mask, soft", lambda: run.mask("cat", threshold=(0.2, 0.5), sites=minip2p.SiteFilter(strides=(2,)))
    yield "mask, hops", lambda: run.mask("cat", threshold=0.4, self_attention_hops=2)
    yield "image", lambda: run.image.tobytes()
    yield "heat maps of an ablated run", lambda: pipe.generate(CAT, seed=1, steps=3, attend=rolled).maps("cat")


def edits(pipe: Any) -> Iterator[tuple[str, Callable[[], Result]]]:
    LocalBlend, SiteFilter = minip2p.LocalBlend, minip2p.SiteFilter
    run = pipe.generate(CAT, seed=1, steps=STEPS)
    fog = pipe.generate("a red car on the street in the fog", seed=5, steps=STEPS)
    half = torch.zeros(128, 128)
    half[:, 40:] = 1
    shown: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "swap": (run, TIGER, {}),
        "refine": (run, "a cat on the beach, watercolor", {}),
        "refine, longer": (run, "a photo of a cat on the beach in the fog", {}),
        "shorter": (run, "a cat", {}),
        "forced refine": (run, TIGER, {"kind": "refine"}),
        "reweight": (fog, fog.prompt, {"reweight": {"fog": 0.0, "car": 2.0}}),
        "swap and reweight": (run, TIGER, {"reweight": {"tiger": 2.0}}),
        "cross by word": (run, TIGER, {"cross_replace": {"default_": 0.8, "tiger": 0.3}, "self_replace": 0.2}),
        "ranges": (run, TIGER, {"cross_replace": (0.2, 0.9), "self_replace": (0.1, 0.5)}),
        "ramps": (run, TIGER, {"cross_replace": (0, 0.5, 0.9), "self_replace": (0, 0.3, 0.9)}),
        "nothing injected": (run, TIGER, {"cross_replace": 0, "self_replace": 0}),
        "all injected": (run, TIGER, {"cross_replace": 1.0, "self_replace": 1.0}),
        "self_max_queries": (run, TIGER, {"self_max_queries": 64}),
        "sites": (run, TIGER, {"sites": SiteFilter(places=("down",), heads=(0, 1))}),
        "sites by stride": (run, TIGER, {"sites": SiteFilter(strides=(1,), indices=(0,))}),
        "region": (run, TIGER, {"region": half, "self_replace": 0.8}),
        "parity swap": (run, TIGER, {"parity": True, "kind": "swap"}),
        "parity refine": (run, "a cat on the beach, watercolor", {"parity": True, "kind": "refine"}),
        "blend": (run, TIGER, {"local_blend": ("cat", "tiger")}),
        "blend, one word": (fog, "a blue car on the street in the fog", {"local_blend": "car"}),
        "blend, otsu": (run, TIGER, {"local_blend": LocalBlend("cat", "tiger", threshold="otsu", pool=False)}),
        "blend, percent": (run, TIGER, {"local_blend": LocalBlend("cat", "tiger", threshold="70%")}),
        "blend, soft and gradual": (
            run,
            TIGER,
            {"local_blend": LocalBlend("cat", "tiger", threshold=(0.2, 0.6), start=(0.2, 0.7))},
        ),
        "blend, hops": (run, TIGER, {"local_blend": LocalBlend("cat", "tiger", self_attention_hops=1)}),
        "blend, without": (run, TIGER, {"local_blend": LocalBlend("cat", "tiger", without_source="beach")}),
        "blend, own mask": (run, TIGER, {"local_blend": LocalBlend(mask=half)}),
        "several targets": (run, [TIGER, "a lion on the beach", TIGER, CAT], {}),
        "edit from a prompt": (CAT, TIGER, {"seed": 4, "steps": STEPS, "negative_prompt": "fog"}),
        "edit, not square": (CAT, TIGER, {"seed": 4, "steps": STEPS, "size": (96, 136), "local_blend": "beach"}),
    }
    for name, (source, target, options) in shown.items():
        yield name, lambda s=source, t=target, o=options: pipe.edit(s, t, **o)
        if name in ("swap", "refine", "ramps", "sites", "region", "blend, soft and gradual"):
            yield f"{name}, explicit", lambda s=source, t=target, o=options: pipe.edit(s, t, explicit=True, **o)
    yield (
        "the source of an edit",
        lambda: pipe.edit(CAT, TIGER, seed=4, steps=STEPS, self_replace=0.2).source_run.finish(),
    )
    yield "edit of an edit", lambda: pipe.edit(pipe.edit(run, TIGER), "a lion on the beach")
    blended = pipe.edit(run, TIGER, local_blend=("cat", "tiger"))
    yield "the mask of a blend", lambda: blended.blend_mask
    stored = minip2p.AttentionStore(sites=lambda site: site.cross and site.stride == 2)

    def store() -> Tensor:
        pipe.edit(run, TIGER, attend=minip2p.explicit(stored))
        return torch.cat([maps.flatten() for _, maps in sorted(stored.maps.items())])

    yield "attention store", store


def other_attention(pipe: Any) -> Iterator[tuple[str, Callable[[], Result]]]:
    from minip2p.baselines import MasaCtrl, PlugAndPlay
    from minip2p.p2p.separate import SeparateWords

    run = pipe.generate(CAT, seed=1, steps=STEPS)
    alone = {"cross_replace": 0, "self_replace": 0}
    yield "MasaCtrl", lambda: pipe.edit(run, TIGER, attend=MasaCtrl(run), **alone)
    yield "plug-and-play", lambda: pipe.edit(run, TIGER, attend=PlugAndPlay(run), **alone)
    words = pipe.text.prompt("a red car and a blue umbrella on the street")
    apart = minip2p.explicit(SeparateWords(words, ["car", "umbrella"]))
    yield "separate words", lambda: pipe.generate(words.text, seed=1, steps=STEPS, attend=apart)


def records(pipe: Any, work: Path) -> Iterator[tuple[str, Callable[[], Result]]]:
    recorded = pipe.record(CAT, seed=1, steps=STEPS)
    part = pipe.record(CAT, seed=1, steps=STEPS, cross_replace=0.5, self_replace=(0.1, 0.3), dtype=torch.float16)
    file = work / "cat.safetensors"
    pipe.record(CAT, seed=1, steps=STEPS, file=file)
    yield "record", lambda: recorded
    yield "edit of a record", lambda: pipe.edit(recorded, TIGER)
    yield "edit of a partial float16 record", lambda: pipe.edit(part, TIGER, self_replace=0.8)
    yield "run file", lambda: pipe.open(file)
    yield "edit of a run file", lambda: pipe.edit(pipe.open(file), [TIGER, "a lion on the beach"])

    def saved() -> Result:
        pipe.generate(CAT, seed=9, steps=STEPS).save(work / "saved.safetensors")
        return pipe.edit(pipe.open(work / "saved.safetensors"), TIGER, local_blend=("cat", "tiger"))

    yield "saved, opened and edited", saved


def inversions(pipe: Any, work: Path) -> Iterator[tuple[str, Callable[[], Result]]]:
    options: dict[str, dict[str, Any]] = {"null-text": {"num_inner_steps": 2}}
    for method in ("ddim", "direct", "negative-prompt", "proximal", "null-text", "edit-friendly"):
        run = pipe.invert(PHOTO, CAPTION, method=method, steps=STEPS, **options.get(method, {}))
        yield f"invert, {method}", lambda run=run: run
        yield f"edit, {method}", lambda run=run: pipe.edit(run, RECOLOURED, local_blend="umbrella")

        def reopened(run: Any = run, method: str = method) -> Result:
            run.save(work / f"{method}.safetensors")
            return pipe.edit(pipe.open(work / f"{method}.safetensors"), RECOLOURED)

        yield f"edit of the file, {method}", reopened
    yield "invert, refined latents", lambda: pipe.invert(PHOTO, CAPTION, steps=3, vae_refine_steps=3)
    yield (
        "invert, guidance 1, fit",
        lambda: pipe.invert(PHOTO, CAPTION, steps=3, guidance_scale=1.0, size=(96, 128), fit="stretch"),
    )
    yield (
        "invert, null-text, checkpointing",
        lambda: pipe.invert(
            PHOTO, CAPTION, steps=3, method="null-text", num_inner_steps=2, gradient_checkpointing=True
        ),
    )


def sweeps(pipe: Any, work: Path) -> Iterator[tuple[str, Callable[[], Result]]]:
    from minip2p.sweeps.grid import Grid
    from minip2p.sweeps.sweep import sweep

    def figures() -> Result:
        fields = {
            "source": CAT,
            "target": TIGER,
            "seed": [1, 2],
            "cross": [0.4, 0.8],
            "blend": ["", "cat:tiger"],
            "steps": 4,
        }
        rows = sweep(pipe, Grid.from_fields(fields), work / "sweep")
        return json.dumps([[value for value in row.values()] for row in rows])

    yield "sweep", figures


def lora(pipe: Any, work: Path) -> Iterator[tuple[str, Callable[[], Result]]]:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    out, inner = pipe.unet.get_parameter(f"{name}.weight").shape
    file = work / "lora.safetensors"
    tensors = {"lora_A": noise(4, inner, seed=1), "lora_B": noise(out, 4, seed=2)}
    save_file({f"unet.{name}.{end}.weight": tensor for end, tensor in tensors.items()}, file)
    yield "LoRA", lambda: pipe.merged(file, 0.05).generate(CAT, seed=1, steps=3)


def families(work: Path) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Small random models of every family, written once by diffusers and reused by the second call."""
    names = ("SD 2, v", "SDXL", "InstructPix2Pix", "inpainting", "SD Turbo", "SDXL Turbo")
    for name in names:
        folder = work / "families" / name.replace(" ", "-")
        if not folder.exists():
            from families import pipeline

            pipeline(name).save_pretrained(folder)
        pipe = minip2p.load(folder)
        picture = noise(3, 32, 32).clamp(-1, 1)
        if name == "InstructPix2Pix":
            run = pipe.instruct(picture, "a cat", image_guidance_scale=1.5, seed=1, steps=3)
        elif name == "inpainting":
            run = pipe.inpaint(picture, torch.ones(32, 32).tril(), "a cat on the beach", seed=1, steps=3)
        else:
            run = pipe.generate("a cat on the beach", seed=1, steps=3)
        yield f"{name}: run", lambda run=run: run
        target = "a dog" if name == "InstructPix2Pix" else "a dog on the beach"
        yield f"{name}: edit", lambda pipe=pipe, run=run, target=target: pipe.edit(run, target, self_replace=0.7)
        if name in ("SD 2, v", "SDXL"):
            yield (
                f"{name}: invert",
                lambda pipe=pipe, x=picture: pipe.invert(x, "a cat", steps=3, method="negative-prompt"),
            )
            yield (
                f"{name}: null-text",
                lambda pipe=pipe, x=picture: pipe.invert(x, "a cat", steps=3, method="null-text", num_inner_steps=1),
            )


def goldens(pipe: Any, work: Path) -> Iterator[tuple[str, Callable[[], Result]]]:
    work.mkdir(parents=True, exist_ok=True)
    yield from generation(pipe)
    yield from edits(pipe)
    yield from other_attention(pipe)
    yield from records(pipe, work)
    yield from inversions(pipe, work)
    yield from lora(pipe, work)
    yield from families(work)
    half = minip2p.load(dtype=torch.bfloat16)
    run = half.generate(CAT, seed=1, steps=3)
    yield "bfloat16", lambda: run
    yield "bfloat16, edit", lambda: half.edit(run, TIGER, local_blend=("cat", "tiger"))
    yield from sweeps(pipe, work)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--work", type=Path, default=Path("out/golden"), help="folder for intermediate files")
    options = parser.parse_args()
    hashes = {}
    expected = json.loads(options.file.read_text()) if options.action == "compare" else None
    for name, compute in goldens(minip2p.load(), options.work):
        hashes[name] = digest(compute())
        if expected is not None and expected.get(name) != hashes[name]:
            print(f"differs: {name}", flush=True)
    if expected is None:
        options.file.write_text(json.dumps(hashes, indent=1) + "\n")
        print(f"{options.file}: {len(hashes)} results")
        return 0
    equal = sum(expected.get(name) == value for name, value in hashes.items())
    print(f"{equal} of {len(expected)} results equal to the bit")
    return 0 if equal == len(expected) == len(hashes) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests/support"))
    sys.exit(main())
