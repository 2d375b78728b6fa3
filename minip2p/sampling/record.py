"""Records a run: goes through it once and keeps what edits read of it, in memory or in a run file.

Axes: t steps, c h w latents.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from minip2p.checkpoints.components import Components
from minip2p.io.files import atomic_write
from minip2p.io.tensors import Layout, SafetensorsBuffer, layout_bytes
from minip2p.sampling.progress import Progress
from minip2p.sampling.qk_cache import CachePolicy, QKCache, cache_layout, queries_per_site
from minip2p.sampling.run_file import conditioning_tensors, run_metadata
from minip2p.sampling.settings import RunStart
from minip2p.sampling.trajectory import SourceRun, Trajectory


def record_run(
    components: Components,
    origin: Trajectory | RunStart,
    policy: CachePolicy,
    *,
    dtype: torch.dtype,
    budget: float,
    file: Path | None = None,
    progress: Progress = iter,
) -> Trajectory:
    """Goes through a run once and keeps the (q, k) that `policy` names, and its corrections where edits need them.

    dtype: of the cache. budget: bytes that a cache in memory may take. file: keep the cache memory-mapped in this file
    instead, which then is the run's file.
    Raises ValueError before the run starts where the cache would exceed the budget.
    """
    source = SourceRun(components, origin)
    latent = (source.latents[0].shape[-2], source.latents[0].shape[-1])
    if origin.guidance_scale == 0:  # the words are not read, so there is no attention to keep
        policy = CachePolicy((0, 0), (0, 0), 0)
    if origin.conditioning.source_guidance_scale is not None:
        policy = replace(policy, corrected_steps=(origin.conditioning.skip_steps, origin.steps))
    words = len(components.text.prompt(origin.prompt).ids)
    cached = cache_layout(components.unet, latent, words, origin.steps, policy=policy, dtype=dtype)
    if file is None and layout_bytes(cached) > budget:
        raise ValueError(
            f"the record would take {layout_bytes(cached) / 1e6:,.1f} MB of memory, its budget is "
            f"{budget / 1e6:,.1f}: give a larger budget or fewer steps; record may also take a file or a smaller dtype"
        )
    extra = conditioning_tensors(origin.conditioning)
    layout: Layout = {"latents": (torch.float32, (origin.steps + 1, *source.latents[0].shape[1:]))}
    layout |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in extra.items()}
    metadata = {}
    if file is not None:
        components.origin.refuse_overwrite(file)
        metadata = run_metadata(components, origin, origin.attend)
    with nullcontext() if file is None else atomic_write(file) as partial:
        buffer = SafetensorsBuffer(layout | cached, metadata, partial)
        tensors = {name: buffer.tensors[name] for name in cached}
        cache = QKCache(tensors, queries_per_site(components.unet, latent))
        for i in progress(range(origin.steps)):
            cache.put(i, source.advance(i, policy.at(i)), source.corrections.get(i))
        run = source.finish()
        buffer.tensors["latents"].copy_(run.latents)
        for name, tensor in extra.items():
            buffer.tensors[name].copy_(tensor)
    return replace(run, latents=buffer.tensors["latents"], qk_cache=cache)
