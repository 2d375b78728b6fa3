"""The noise schedule and the DDIM step, in both directions."""

from minip2p.sched.ddim import DDIMScheduler, Step, ddim_step, fresh_noise_steps, split_prediction

__all__ = ["DDIMScheduler", "Step", "ddim_step", "fresh_noise_steps", "split_prediction"]
