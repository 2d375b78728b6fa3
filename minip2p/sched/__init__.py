"""The noise schedule, and the steps of DDIM and of consistency models."""

from minip2p.sched.ddim import DDIMScheduler, Step, ddim_step, fresh_noise_steps, split_prediction
from minip2p.sched.lcm import LCMScheduler

__all__ = ["DDIMScheduler", "LCMScheduler", "Step", "ddim_step", "fresh_noise_steps", "split_prediction"]
