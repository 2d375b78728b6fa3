"""Inversion: photographs become runs, which every edit takes as it takes a generated run.

Each method is a function (components, start, progress, **options) -> Trajectory, where `start.noise` is the latents of
the photograph, 1 c h w. All but the last two begin with DDIM inversion by the conditional branch alone (w = 1), whose
latents z*_T … z*_0 are the *pivots*. They differ in how the source is kept near the pivots when w is not 1:

| method | how the source runs | what its edits take over |
|---|---|---|
| ddim | from z*_T by itself; it drifts away from the photograph unless w = 1 | nothing |
| negative-prompt | the same, with its own prompt as negative prompt (Miyake et al. 2023) | that negative prompt |
| proximal | the same | that, and guidance without small differences (Han et al. 2023) |
| null-text | with an unconditional embedding optimised for each step (Mokady et al. 2022) | the embeddings |
| direct | its latents are the pivots themselves (Ju et al. 2023) | nothing |
| edit-friendly | its latents are noised independently (Huberman-Spiegelglas et al. 2023) | the noise z of each step |
| virtual | the same, without running the model (Xu et al. 2023) | that, and a correction by the source's prediction |
"""
