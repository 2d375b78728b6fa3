"""The sampler: one pure DDIM step, both directions."""

from minip2p.sched.ddim import Schedule, Step, ddim_step, noise_and_picture

__all__ = ["Schedule", "Step", "ddim_step", "noise_and_picture"]
