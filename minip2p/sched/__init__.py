"""The sampler: one pure DDIM step, both directions."""

from minip2p.sched.ddim import DDIMScheduler, Step, ddim_step, split_prediction

__all__ = ["DDIMScheduler", "Step", "ddim_step", "split_prediction"]
