"""The front: a model can `generate`, `edit` and `invert`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from minip2p.attention.contract import ALL_SITES, Attend, SiteFilter, fused
from minip2p.attention.store import check_attend
from minip2p.checkpoints.components import Components
from minip2p.checkpoints.lora import Lora, merge
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.checkpoints.save import save_model
from minip2p.inversion.methods import get_method
from minip2p.p2p.editing import run_edits
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.schedules import step_range
from minip2p.p2p.targets import make_targets
from minip2p.sampling.conditioning import inpainting_conditioning, instruct_pix2pix_conditioning, load_photo
from minip2p.sampling.progress import progress_bar
from minip2p.sampling.qk_cache import CachePolicy
from minip2p.sampling.run_file import load_run, record_run
from minip2p.sampling.settings import RunSettings, prepare_run
from minip2p.sampling.trajectory import Trajectory, sample
from minip2p.sched import DDIMScheduler
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE
from minip2p.validation import is_finite


class Pipeline(Components):
    """A loaded model. Its parts (`unet`, `vae`, `text`, `sched`) can be used on their own."""

    def __init__(
        self,
        unet: UNet,
        vae: VAE,
        text: TextEncoder,
        scheduler: DDIMScheduler,
        default_guidance: float = 7.5,
        origin: CheckpointOrigin | None = None,
    ):
        super().__init__(unet, vae, text, scheduler, origin or CheckpointOrigin())
        self.default_guidance = default_guidance

    def __repr__(self) -> str:
        return f"Model({', '.join(self.origin.labels.values())}, {self.dtype}, {self.device})"

    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int = 50,
        guidance_scale: float | None = None,
        size: tuple[int, int] | None = None,
        negative_prompt: str = "",
        latents: Tensor | None = None,
        attend: Attend = fused,
    ) -> Trajectory:
        """Generates a picture from a prompt.

        seed: of the noise; the same seed gives the same picture. guidance: w, the model's own where None. size: rows
        and columns of the picture in pixels. latents: the noise itself, 1 c h w; it then sets the size. attend: the
        attention of the conditional rows; an object with a method `at(step)` is asked for each step's.
        Raises ValueError for what the model cannot take.
        """
        start = self.prepare(
            prompt,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            size=size,
            negative_prompt=negative_prompt,
            latents=latents,
            attend=attend,
        )
        return sample(self, start, progress_bar)

    @overload
    def edit(self, source: Trajectory | str, target: str, **options: Any) -> Trajectory: ...

    @overload
    def edit(self, source: Trajectory | str, target: Sequence[str], **options: Any) -> list[Trajectory]: ...

    def edit(
        self,
        source: Trajectory | str,
        target: str | Sequence[str],
        *,
        cross_replace: Any = 0.8,
        self_replace: Any = 0.4,
        self_max_queries: int = 32 * 32,
        kind: str = "auto",
        reweight: Mapping[Any, float] | None = None,
        local_blend: LocalBlend | str | Sequence[Any] | None = None,
        sites: SiteFilter = ALL_SITES,
        region: Any = None,
        explicit: bool = False,
        parity: bool = False,
        attend: Attend | None = None,
        **options: Any,
    ) -> Trajectory | list[Trajectory]:
        """Edits a picture by editing its prompt (Hertz et al. 2022): a run for a prompt, a list of runs for a list.

        source: a run; or a prompt, with `generate`'s options: then source and targets go step by step together, the
        source once (`out.source`). cross: τ of the cross-attention: a number, a (start, end), three that end in a ramp
        (`rule.course`), or a dict by word of the target, whose "default_" for all others is 1.0 if not given. self_: τ
        of the self-attention, at sites of at most `self_pixels` queries. kind: "swap", "refine" or "auto". reweight:
        word of the target -> weight. blend: a word, a (source word, target word), or a `Blend`. where: the sites and
        heads that the edit reaches, all by default. within: a mask H W, as `Blend` takes one's own: the attention
        outside of it stays the source's to the end. explicit: form the maps, as the paper does. parity: the published
        code's mappers and words, defects included (a blend finds its words our way). attend: the targets' attention
        besides the edit, the source's where None; a source that is a prompt has the same, so to keep the maps of a
        target alone, edit a run. An edit is a source by its latents and by the maps that its own prompt makes on them:
        its first edit is not made again. Raises ValueError for words that are not in their prompt.
        """
        if attend is not None:
            check_attend(attend)
        SiteFilter.validate(sites, self.unet.heads)
        origin = self.resolve_source(source, attend, options)
        several = isinstance(target, list | tuple)
        prompts: list[Any] = list(target) if several else [target]
        if not prompts:
            raise ValueError("an edit needs a target prompt, and the list of targets is empty")
        targets = make_targets(
            self,
            origin,
            prompts,
            LocalBlend.from_argument(local_blend),
            region,
            cross_replace=cross_replace,
            self_replace=self_replace,
            kind=kind,
            self_max_queries=self_max_queries,
            reweight=reweight,
            sites=sites,
            parity=parity,
        )
        runs = run_edits(self, origin, targets, attend=attend, explicit=explicit, progress=progress_bar)
        return runs if several else runs[0]

    def resolve_source(
        self, source: Trajectory | str, attend: Attend | None, options: Mapping[str, Any]
    ) -> Trajectory | RunSettings:
        """What an edit starts from: a run of this model, or the start of one. Raises ValueError for anything else."""
        if isinstance(source, str):
            return self.prepare(source, **{"attend": attend or fused, **options})
        if not isinstance(source, Trajectory):
            raise ValueError(f"the source of an edit is a run or a prompt, not {type(source).__name__}")
        if source.components is not self:
            raise ValueError(f"the run {source.prompt!r} is another model's: edit it with the model that made it")
        if options:
            raise ValueError(f"{', '.join(options)}: a run has its own; give a prompt as the source to choose")
        return source

    def prepare(self, prompt: str, **options: Any) -> RunSettings:
        """Where a run begins, with the options of `generate`. Raises ValueError for what the model cannot take."""
        own = options.pop("guidance_scale", None)
        if own is None or (
            own == 0 and self.default_guidance == 1
        ):  # a distilled model's card says 0, and means no guidance
            own = self.default_guidance
        return prepare_run(self, prompt, guidance_scale=own, **options)

    def invert(
        self,
        picture: str | Path | Image.Image | Tensor,
        prompt: str,
        *,
        method: str = "direct",
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        vae_refine_steps: int = 0,
        **options: Any,
    ) -> Trajectory:
        """A photograph as a run, which can be edited as a generated picture can.

        picture: a file, an image of Pillow, or 3 H W in [-1, 1], taken in its own size. prompt: what it shows. method:
        one of `minip2p.inversion.methods.METHODS`; options: its own. size: rows and columns that it is brought to, the model's own
        where None; fit: by "crop" or "stretch". polish: so many updates bring what the VAE makes of it nearer to it
        (`Parts.polished`; 20 do much). Raises ValueError for what the model cannot take.
        """
        by = get_method(method, options)
        latents = self.encode(load_photo(self, picture, size, fit)[None], vae_refine_steps)
        start = self.prepare(
            prompt, steps=steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt, latents=latents
        )
        return by(self, start, progress_bar, **options)

    def instruct(
        self,
        picture: str | Path | Image.Image | Tensor,
        instruction: str,
        *,
        image_guidance_scale: float = 1.5,
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        **options: Any,
    ) -> Trajectory:
        """A picture made of a picture as it is told to, "make it snow": of models like InstructPix2Pix.

        picture, size, fit: as for `invert`. picture_guidance: w_I, how near to it (`Parts.two_ways`); `guidance`, w_T,
        is how strong the instruction is. options: `generate`'s. The run can be edited as any other: its prompt is the
        instruction. Raises ValueError for another model, and what it cannot take.
        """
        if not is_finite(image_guidance_scale):
            raise ValueError(f"image_guidance_scale must be a finite number, not {image_guidance_scale!r}")
        beside = instruct_pix2pix_conditioning(self, load_photo(self, picture, size, fit), float(image_guidance_scale))
        return sample(self, self.prepare(instruction, image=beside, **options), progress_bar)

    def inpaint(
        self,
        picture: str | Path | Image.Image | Tensor,
        mask: Any,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        **options: Any,
    ) -> Trajectory:
        """A picture that is made anew where a mask is white, by models that were trained for it. The rest comes near to
        the picture, as the VAE has it. mask: see `beside.masked`; all else as for `instruct`."""
        beside = inpainting_conditioning(self, load_photo(self, picture, size, fit), mask, fit)
        return sample(self, self.prepare(prompt, image=beside, **options), progress_bar)

    def record(
        self,
        source: Trajectory | str,
        *,
        cross_replace: Any = 1.0,
        self_replace: Any = 0.4,
        self_max_queries: int = 32 * 32,
        sites: SiteFilter = ALL_SITES,
        dtype: torch.dtype | None = None,
        budget: float = 4e9,
        file: str | Path | None = None,
        **options: Any,
    ) -> Trajectory:
        """A run that can be edited without being run again: it keeps the (q, k) that edits read.

        source: a run; or a prompt, with `generate`'s options. cross, self_, self_pixels, where: up to which τ and what
        size, and at which sites, edits will read it; what was not kept is made anew. dtype: of what is kept, the
        model's own where None. budget: bytes of memory that it may take; ValueError for more. file: keep it
        memory-mapped in this file instead, which is then the run's file, for `open`.
        """
        if not isinstance(dtype, torch.dtype | None) or not isinstance(budget, int | float) or not budget >= 0:
            raise ValueError(f"a record has a dtype of torch and a budget in bytes, not {dtype!r} and {budget!r}")
        origin = self.resolve_source(source, None, options)
        SiteFilter.validate(sites, self.unet.heads)
        steps = step_range("cross", cross_replace, origin.steps + 1), step_range("self", self_replace, origin.steps)
        keeps = CachePolicy(*steps, self_max_queries, sites)
        return record_run(
            self,
            origin,
            keeps,
            dtype=dtype or self.dtype,
            budget=budget,
            file=None if file is None else Path(file),
            progress=progress_bar,
        )

    def open(self, file: str | Path) -> Trajectory:
        """The run in a file that `record` or `Trajectory.save` wrote, memory-mapped. Raises FileNotFoundError or
        ValueError, one line, for a file that is not a whole run of this model."""
        return load_run(self, Path(file))

    def save(self, folder: str | Path) -> None:
        """Writes a folder in diffusers' layout, in the model's dtype, or nothing. Raises FileExistsError."""
        save_model(self, Path(folder), self.default_guidance)

    def merged(self, file: str | Path, scale: float = 1.0) -> "Pipeline":
        """A model with a LoRA file in its weights, W + scale · (α / r) · B A (`minip2p.checkpoints.lora`). It shares all else with
        this one, which stays what it is. Raises FileNotFoundError or ValueError where the file does not fit."""
        unet, text, made = merge(self, Lora.read(Path(file), self), scale)
        return Pipeline(unet, self.vae, text, self.scheduler, self.default_guidance, made)
