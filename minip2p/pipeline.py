"""The front door: `load` returns a `Pipeline`, which generates, edits and inverts."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch
from PIL import Image
from torch import Tensor

from minip2p.attention.contract import ALL_SITES, Attend, SiteFilter
from minip2p.checkpoints.components import Components, RowCounter
from minip2p.checkpoints.embeddings import Embedding, add_embedding
from minip2p.checkpoints.load import load_components
from minip2p.checkpoints.lora import Lora, merge
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.checkpoints.save import save_model
from minip2p.inversion.encode import encode_photo
from minip2p.inversion.methods import check_approximate, check_unconditional, get_method
from minip2p.p2p.editing import record_for_moves, run_edits
from minip2p.p2p.live import LiveEdits
from minip2p.p2p.options import EditOptionKeywords, EditOptions, check_setting_names
from minip2p.p2p.places import latent_size_of
from minip2p.p2p.schedules import step_range
from minip2p.p2p.targets import make_targets
from minip2p.planner.plan import Plan
from minip2p.sampling.conditioning import (
    ImageConditioning,
    inpainting_conditioning,
    instruct_pix2pix_conditioning,
    load_photo,
)
from minip2p.sampling.preview import OnStep
from minip2p.sampling.progress import Progress, progress_bar
from minip2p.sampling.qk_cache import CachePolicy
from minip2p.sampling.record import record_run
from minip2p.sampling.sampler import sample, sample_all
from minip2p.sampling.settings import RunSettings, RunStart, prepare_run
from minip2p.sampling.trajectory import Trajectory
from minip2p.sched import DDIMScheduler
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE
from minip2p.validation import is_finite

Photo = str | Path | Image.Image | Tensor  # a file, a Pillow image, or 3 H W in [-1, 1]


class SettingKeywords(TypedDict, total=False):
    """The fields of `RunSettings` as keywords for type checkers, without the seed and the attention."""

    steps: int
    guidance_scale: float | None
    size: tuple[int, int] | None
    negative_prompt: str
    clip_skip: int
    latents: Tensor | None
    guidance_interval: tuple[float, float] | None
    uncond_every: int


class EditKeywords(EditOptionKeywords, SettingKeywords, total=False):
    """The keywords of `Pipeline.edit` for type checkers: the fields of `EditOptions` and of `RunSettings`."""

    seed: int
    on_step: OnStep | None


class GenerateKeywords(SettingKeywords, total=False):
    """The keywords of `Pipeline.generate` for type checkers, but for the seed."""

    attend: Attend
    on_step: OnStep | None


def load(
    where: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    vae: str | Path | None = None,
    config: str | Path | None = None,
    scheduler: str | None = None,
) -> "Pipeline":
    """Loads a model.

    where: a folder in diffusers' layout; a single .safetensors file in the names of the original codes; a name on the
    Hugging Face hub (org/name); None for the small model that ships with minip2p; or "tiny-fast" for its student, which
    ships as well and needs four steps and no guidance. dtype: float32 by default. device: the CPU by default. vae: a
    folder, file or name with another VAE. config: for a single file, which has neither configurations nor tokenizers, a
    folder or a name on the hub of the same family. scheduler: "ddim", or "lcm" for consistency models, such as one with
    an LCM-LoRA merged into it; None is LCM where the model's configuration names LCMScheduler, and else DDIM.
    Raises FileNotFoundError or ValueError with one line that names the file and what is wrong with it.
    """
    components, default_guidance = load_components(
        where, dtype=dtype, device=device, vae=vae, config=config, scheduler=scheduler
    )
    return Pipeline(components, default_guidance)


@dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """A loaded model. Its components can be used on their own.

    default_guidance: the guidance scale where none is given. progress: wraps the steps of every method.
    """

    components: Components
    default_guidance: float
    progress: Progress = progress_bar

    def __repr__(self) -> str:
        labels = ", ".join(self.components.origin.labels.values())
        return f"Pipeline({labels}, {self.dtype}, {self.device})"

    @property
    def unet(self) -> UNet:
        return self.components.unet

    @property
    def vae(self) -> VAE:
        return self.components.vae

    @property
    def text(self) -> TextEncoder:
        return self.components.text

    @property
    def scheduler(self) -> DDIMScheduler:
        return self.components.scheduler

    @property
    def origin(self) -> CheckpointOrigin:
        """The files that the model was loaded from."""
        return self.components.origin

    @property
    def device(self) -> torch.device:
        return self.components.device

    @property
    def dtype(self) -> torch.dtype:
        return self.components.dtype

    def counting(self, counter: RowCounter) -> "Pipeline":
        """The same model, whose calls of the UNet add their rows to a counter. Both can edit each other's runs."""
        return replace(self, components=replace(self.components, counter=counter))

    def with_progress(self, progress: Progress) -> "Pipeline":
        """The same model with another way to show progress, for all methods. Both can edit each other's runs.

        progress: takes the steps of a run and returns an iterable of the same. `iter` shows nothing. One that raises
        between two steps cancels the run.
        """
        return replace(self, progress=progress)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first match counts
        self, prompt: str, *, seed: int = ..., **options: Unpack[GenerateKeywords]
    ) -> Trajectory: ...

    @overload
    def generate(
        self, prompt: str, *, seed: Sequence[int], **options: Unpack[GenerateKeywords]
    ) -> list[Trajectory]: ...

    @overload
    def generate(
        self, prompt: Sequence[str], *, seed: int | Sequence[int] = ..., **options: Unpack[GenerateKeywords]
    ) -> list[Trajectory]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = RunSettings.seed,
        steps: int | None = RunSettings.steps,
        guidance_scale: float | None = RunSettings.guidance_scale,
        size: tuple[int, int] | None = RunSettings.size,
        negative_prompt: str = RunSettings.negative_prompt,
        clip_skip: int = RunSettings.clip_skip,
        latents: Tensor | None = RunSettings.latents,
        attend: Attend = RunSettings.attend,
        guidance_interval: tuple[float, float] | None = RunSettings.guidance_interval,
        uncond_every: int = RunSettings.uncond_every,
        on_step: OnStep | None = None,
        **unknown: Any,
    ) -> Trajectory | list[Trajectory]:
        """Generates a picture from a prompt. Returns a run, or a list of runs for a list of prompts or seeds.

        prompt: a prompt, or a list. seed: of the noise; the same seed gives the same picture. A list of seeds makes a
        picture for each; two lists are of equal length and are gone through together. Several pictures run as one
        batch, and differ from single ones by rounding. steps: of the scheduler. guidance_scale: w of classifier-free
        guidance; None is the model's own. size: rows and columns of the picture in pixels; None is the model's own.
        negative_prompt: what the picture should not show. clip_skip: n reads the text encoder n − 1 layers before the
        model's own layer, as A1111's web UI counts (diffusers' `clip_skip` is n − 1). latents: the initial noise
        itself, 1 c h w, which also sets the size. attend: the attention of the conditional rows; if it has a method
        `at(step)`, that is called for each step's attention. on_step: a function that is called at each step with a
        `StepPreview` of what it predicts. guidance_interval, uncond_every: approximations that take fewer rows of the
        UNet, off by default (`RunSettings`).
        Raises ValueError for what the model cannot take.
        """
        check_setting_names(unknown)
        is_list = isinstance(prompt, list | tuple) or isinstance(seed, list | tuple | range)
        if latents is not None and isinstance(seed, list | tuple | range):
            raise ValueError("latents are the noise itself: there is nothing for several seeds to draw")
        starts = [
            self.prepare(
                text,
                RunSettings(
                    seed=number,
                    steps=steps,
                    guidance_scale=guidance_scale,
                    size=size,
                    negative_prompt=negative_prompt,
                    clip_skip=clip_skip,
                    latents=latents,
                    attend=attend,
                    guidance_interval=guidance_interval,
                    uncond_every=uncond_every,
                ),
            )
            for text, number in pair_up(prompt, seed)
        ]
        runs = sample_all(self.components, starts, self.progress, on_step)
        return runs if is_list else runs[0]

    @overload
    def edit(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first match counts
        self, source: Trajectory | str, target: str | Plan, **options: Unpack[EditKeywords]
    ) -> Trajectory: ...

    @overload
    def edit(
        self, source: Trajectory | str, target: Sequence[str], **options: Unpack[EditKeywords]
    ) -> list[Trajectory]: ...

    def edit(  # type: ignore[misc]  # mypy does not see that the keywords below are those of EditKeywords
        self,
        /,
        source: Trajectory | str,
        target: str | Plan | Sequence[str],
        *,
        cross_replace: Any = EditOptions.cross_replace,
        self_replace: Any = EditOptions.self_replace,
        self_max_queries: int = EditOptions.self_max_queries,
        kind: str = EditOptions.kind,
        reweight: Mapping[Any, float] | None = EditOptions.reweight,
        local_blend: Any = EditOptions.local_blend,
        sites: SiteFilter | None = EditOptions.sites,
        region: Any = EditOptions.region,
        move: Mapping[Any, Any] | None = EditOptions.move,
        resize: Mapping[Any, Any] | None = EditOptions.resize,
        duplicate: Mapping[Any, Any] | None = EditOptions.duplicate,
        remove: Any = EditOptions.remove,
        explicit: bool = EditOptions.explicit,
        parity: bool = EditOptions.parity,
        attend: Attend | None = EditOptions.attend,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Trajectory | list[Trajectory]:
        """Edits a picture by editing its prompt (Hertz et al. 2022). Returns a run, or a list of runs for a list.

        source: a run; or a prompt, with the settings of `generate`. Then source and targets are sampled together, the
        source once; `out.source_run.finish()` is its run. target: the prompt to edit to, or a list of prompts; or a
        `Plan`, which has its prompt and its options.

        The options are those of `EditOptions`. In short: cross_replace and self_replace: for which share of the steps
        the target takes the source's cross- and self-attention. self_max_queries: only self-attention of at most so
        many queries. kind: "swap", "refine" or "auto". reweight: word -> weight. local_blend: the words where the
        picture may change. sites: the attention sites that are edited. region: a mask outside of which the attention
        stays the source's. move, resize, duplicate, remove: what happens to objects, by their words:
        `move={"cat": (32, 0)}` moves the cat by 32 pixels to the right. explicit: form the attention maps. parity: the
        published code's mappers. attend: the targets' attention apart from the edit. If the source is a prompt, it uses
        the same attention; to store the maps of a target alone, edit a run. on_step: as for `generate`, with a row for
        each target.

        An edit can be edited again. Then its own prompt's attention on its own latents is the source's; its first edit
        is not applied again.
        Raises ValueError for words that are not in their prompt, and for what the model cannot take.
        """
        options = EditOptions(
            cross_replace=cross_replace,
            self_replace=self_replace,
            self_max_queries=self_max_queries,
            kind=kind,
            reweight=reweight,
            local_blend=local_blend,
            sites=sites,
            region=region,
            move=move,
            resize=resize,
            duplicate=duplicate,
            remove=remove,
            explicit=explicit,
            parity=parity,
            attend=attend,
        )
        if attend is not None and isinstance(source, str):
            settings = {"attend": attend, **settings}
        origin = self.resolve_source(source, settings)
        if isinstance(target, Plan):
            rows, columns = (self.vae.stride * side for side in latent_size_of(origin))
            options = target.check(origin.prompt).apply_to(options, (rows, columns))
            target = target.target
        is_list = isinstance(target, list | tuple)
        prompts: list[Any] = list(target) if is_list else [target]
        if not prompts:
            raise ValueError("an edit needs a target prompt, and the list of targets is empty")
        reading = record_for_moves(self.components, origin, options, self.progress)
        targets = make_targets(self.components, reading, prompts, options)
        runs = run_edits(
            self.components,
            reading,
            targets,
            attend=attend,
            explicit=explicit,
            progress=self.progress,
            on_step=on_step,
        )
        if isinstance(reading, Trajectory) and reading is not origin:  # the runs should not hold the record
            source_run = runs[0].source_run
            assert source_run is not None
            source_run.origin = origin if isinstance(origin, Trajectory) else replace(reading, qk_cache=None)
        return runs if is_list else runs[0]

    def live(
        self,
        /,
        source: Trajectory | Photo,
        prompt: str | None = None,
        *,
        self_max_queries: int = EditOptions.self_max_queries,
        budget: float = 4e9,
        **settings: Any,
    ) -> LiveEdits:
        """For edits while a user tries settings: `live.edit(target, **options)` runs only what is new.

        The source is recorded, for all steps of cross- and self-attention. source, self_max_queries, budget, settings:
        as for `record`. What edits read beyond that, such as a blend's self-attention at larger maps, runs the source.

        prompt: what the source shows, which is then a photograph. It is inverted first, and settings are those of
        `invert`; by default by virtual inversion in the scheduler's `few_steps`.
        Raises ValueError as `record` and `invert` do, for a run with a prompt, and for a photograph without one, and
        TypeError for options of an edit.
        """
        if names := [name for name in settings if name in ("cross_replace", "self_replace")]:
            raise TypeError(f"{names[0]} is an option of an edit: give it to live.edit; the source is recorded for all")
        if prompt is not None:
            if isinstance(source, Trajectory):
                raise ValueError("a run has its own prompt: give a photograph with a prompt, or the run alone")
            options: dict[str, Any] = {"method": "virtual", "steps": self.scheduler.few_steps, **settings}
            source = self.invert(source, prompt, **options)
            settings = {}
        if not isinstance(source, Trajectory | str):
            raise ValueError("a photograph needs the prompt that says what it shows: live(photo, prompt)")
        uncond_every = settings.get("uncond_every", 1) if isinstance(source, str) else source.conditioning.uncond_every
        if uncond_every != 1:
            raise ValueError("uncond_every: live edits go on from each other's steps, so their unconditional rows run")
        run = self.record(
            source, cross_replace=1.0, self_replace=1.0, self_max_queries=self_max_queries, budget=budget, **settings
        )
        return LiveEdits(self.components, run, self.progress)

    def resolve_source(self, source: Trajectory | str, settings: Mapping[str, Any]) -> Trajectory | RunStart:
        """What an edit or a record starts from: a run of this model, or a prompt with its settings.

        Raises ValueError for anything else, also for the name of a file, and TypeError for settings that do not exist.
        """
        if isinstance(source, str) and os.path.isfile(source):
            raise ValueError(
                f"{source}: is a file, not a prompt: give a photograph to pipe.invert or pipe.live, with the prompt "
                "that says what it shows, and the file of a run to pipe.open; if it is a prompt, add a space to its end"
            )
        check_setting_names(settings)
        if isinstance(source, str):
            return self.prepare(source, RunSettings(**settings))
        if not isinstance(source, Trajectory):
            raise ValueError(f"the source of an edit is a run or a prompt, not {type(source).__name__}")
        if not source.components.shares_networks(self.components):
            raise ValueError(f"the run {source.prompt!r} is another model's: edit it with the model that made it")
        if settings:
            names = ", ".join(settings)
            raise ValueError(f"{names}: a run has its own settings; give a prompt as the source to choose them")
        return source

    def prepare(
        self, prompt: str, settings: RunSettings | None = None, image: ImageConditioning | None = None
    ) -> RunStart:
        """Checks the settings of a run and draws its noise. Raises ValueError for what the model cannot take."""
        settings = settings or RunSettings()
        return prepare_run(self.components, prompt, settings, default_guidance=self.default_guidance, image=image)

    def invert(
        self,
        /,
        picture: Photo,
        prompt: str,
        *,
        method: str = "direct",
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        steps: int | None = RunSettings.steps,
        guidance_scale: float | None = RunSettings.guidance_scale,
        negative_prompt: str = RunSettings.negative_prompt,
        clip_skip: int = RunSettings.clip_skip,
        guidance_interval: tuple[float, float] | None = RunSettings.guidance_interval,
        uncond_every: int = RunSettings.uncond_every,
        vae_refine_steps: int = 0,
        **options: Any,
    ) -> Trajectory:
        """Inverts a photograph into a run, which can be edited like a generated picture.

        picture: a file, a Pillow image, or a tensor 3 H W in [-1, 1], which is taken in its own size. prompt: what it
        shows. method: one of `minip2p.inversion.methods.METHODS`, with its own options. size: rows and columns that the
        picture is scaled to; None is the model's own size. fit: "crop" or "stretch". vae_refine_steps: so many updates
        of the latents bring the decoded picture nearer to the photograph (`inversion.encode.refine_latents`; 20 do
        much). clip_skip: as for `generate`. guidance_interval, uncond_every: as for `generate`, for edits of the run.
        Raises ValueError for what the model cannot take.
        """
        invert = get_method(method, options)
        check_unconditional(self.unet, method)
        photo = load_photo(self.components, picture, size, fit)
        latents = encode_photo(self.components, photo[None], vae_refine_steps)
        settings = RunSettings(
            steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            clip_skip=clip_skip,
            latents=latents,
            guidance_interval=guidance_interval,
            uncond_every=uncond_every,
        )
        start = self.prepare(prompt, settings)
        check_approximate(method, start.conditioning)
        conditioning = replace(start.conditioning, variance_noise=None, eta=None)
        start = replace(start, inversion=method, conditioning=conditioning)
        return invert(self.components, start, self.progress, **options)

    def instruct(
        self,
        /,
        picture: Photo,
        instruction: str,
        *,
        image_guidance_scale: float = 1.5,
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        **settings: Any,
    ) -> Trajectory:
        """Changes a picture as an instruction says ("make it snow"), with a model like InstructPix2Pix.

        picture, size, fit: as for `invert`. image_guidance_scale: w_I, how near the result is to the picture;
        `guidance_scale`, w_T, is how strong the instruction is. settings: those of `generate`. The run can be edited
        like any other: its prompt is the instruction.
        Raises ValueError for another model, and for what the model cannot take.
        """
        if not is_finite(image_guidance_scale):
            raise ValueError(f"image_guidance_scale must be a finite number, not {image_guidance_scale!r}")
        photo = load_photo(self.components, picture, size, fit)
        check_setting_names(settings)
        image = instruct_pix2pix_conditioning(self.components, photo, float(image_guidance_scale))
        return sample(self.components, self.prepare(instruction, RunSettings(**settings), image), self.progress)

    def inpaint(
        self,
        /,
        picture: Photo,
        mask: Any,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        fit: str = "crop",
        **settings: Any,
    ) -> Trajectory:
        """Repaints a picture where a mask is white, with an inpainting model.

        The rest stays near to the picture, as the VAE reproduces it. mask: see
        `sampling.conditioning.inpainting_conditioning`. The other arguments: as for `instruct`.
        """
        photo = load_photo(self.components, picture, size, fit)
        check_setting_names(settings)
        image = inpainting_conditioning(self.components, photo, mask, fit)
        return sample(self.components, self.prepare(prompt, RunSettings(**settings), image), self.progress)

    def record(
        self,
        /,
        source: Trajectory | str,
        *,
        cross_replace: Any = 1.0,
        self_replace: Any = EditOptions.self_replace,
        self_max_queries: int = EditOptions.self_max_queries,
        sites: SiteFilter | None = EditOptions.sites,
        dtype: torch.dtype | None = None,
        budget: float = 4e9,
        file: str | Path | None = None,
        **settings: Any,
    ) -> Trajectory:
        """A run that keeps the (q, k) that edits read, so that its edits need not run it again.

        source: a run; or a prompt, with the settings of `generate`. cross_replace, self_replace, self_max_queries,
        sites: what edits will read at most; everything else is computed again when an edit reads it. dtype: of the
        cache; None is the model's. budget: bytes that a cache in memory may take. file: keep the cache memory-mapped in
        this file instead, which then is the run's file, for `open`.
        Raises ValueError for what the model cannot take, and where the budget would be exceeded.
        """
        if not isinstance(dtype, torch.dtype | None) or not isinstance(budget, int | float) or not budget >= 0:
            raise ValueError(f"a record has a torch dtype and a budget in bytes, not {dtype!r} and {budget!r}")
        origin = self.resolve_source(source, settings)
        sites = EditOptions(sites=sites).sites or ALL_SITES
        sites.validate(self.unet.heads)
        skip_steps = origin.conditioning.skip_steps
        policy = CachePolicy(
            step_range("cross_replace", cross_replace, origin.steps + 1, skip_steps),
            step_range("self_replace", self_replace, origin.steps, skip_steps),
            self_max_queries,
            sites,
        )
        return record_run(
            self.components,
            origin,
            policy,
            dtype=dtype or self.dtype,
            budget=budget,
            file=None if file is None else Path(file),
            progress=self.progress,
        )

    def open(self, file: str | Path) -> Trajectory:
        """Opens a run file that `record` or `Trajectory.save` wrote, memory-mapped.

        Raises FileNotFoundError or ValueError, one line, for a file that is not a whole run of this model.
        """
        return Trajectory.open(self.components, Path(file))

    def save(self, folder: str | Path) -> None:
        """Writes the model as a folder in diffusers' layout, in its own dtype, whole or not at all.

        Raises FileExistsError.
        """
        save_model(self.components, Path(folder), self.default_guidance)

    def merged(self, file: str | Path, scale: float = 1.0) -> "Pipeline":
        """A model with a LoRA merged into its weights: W + scale · (α / r) · B A (`minip2p.checkpoints.lora`).

        file: a file, a folder of diffusers or PEFT, or a name on the hub. DoRA and full differences are merged as well.
        It shares all unchanged weights with this model, which stays what it is.
        Raises FileNotFoundError or ValueError where the file does not fit the model.
        """
        unet, text, origin = merge(self.components, Lora.read(file, self.components), scale)
        return replace(self, components=replace(self.components, unet=unet, text=text, origin=origin))

    def with_embedding(self, file: str | Path, token: str | None = None) -> "Pipeline":
        """A model that knows one more word, by textual inversion (Gal et al. 2022; `minip2p.checkpoints.embeddings`).

        file: a safetensors file, a folder, or a name on the hub. token: the word for it in prompts; None is the one
        that the file states, or else the name of the file. It shares all weights with this model, which stays what it
        is.
        Raises FileNotFoundError or ValueError where the file does not fit the model.
        """
        embedding = Embedding.read(file, token)
        text = add_embedding(self.components.text, embedding)
        origin = self.components.origin.with_label("Embedding", f"{embedding.word} ({embedding.file.name})")
        return replace(self, components=replace(self.components, text=text, origin=origin))


def pair_up(prompt: str | Sequence[str], seed: int | Sequence[int]) -> list[tuple[str, int]]:
    """The prompt and the seed of each picture. Raises ValueError for empty lists, and for lists of unequal length."""
    prompts: Any = prompt if isinstance(prompt, list | tuple) else None
    seeds: Any = seed if isinstance(seed, list | tuple | range) else None
    lengths = [len(values) for values in (prompts, seeds) if values is not None] or [1]
    if min(lengths) == 0:
        raise ValueError("there is nothing to generate: the list of prompts or of seeds is empty")
    if min(lengths) != max(lengths):
        raise ValueError(f"prompts and seeds go in pairs, and there are {lengths[0]} and {lengths[1]} of them")
    return list(zip(prompts or [prompt] * lengths[0], seeds or [seed] * lengths[0], strict=True))
