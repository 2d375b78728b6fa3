"""Comparing runs, and counting the rows of the UNet call by call."""

import torch


class CallLog:
    """A `RowCounter` that also remembers the rows of each call: `pipe.counting(CallLog())`."""

    def __init__(self):
        self.calls = []

    @property
    def rows(self):
        return sum(self.calls)

    @rows.setter
    def rows(self, total):
        self.calls.append(total - self.rows)


def same_latents(a, b):
    """Whether two runs are equal to the bit."""
    return torch.equal(a.latents, b.latents)


def distance(a, b):
    """The largest difference of two tensors."""
    return float((a - b).abs().max())


def deviations(a, b):
    """The largest difference of two runs, in standard deviations of the second one's last latents."""
    return distance(a.latents, b.latents) / float(b.latents[-1].std())


def mean_squared_error(run, latents):
    """Between the last latents of a run and others, 1 c h w."""
    return float((run.latents[-1:] - latents).square().mean())
