"""Explains why a result is not finite: damaged weights, or an overflow."""

from collections.abc import Mapping

import torch
from torch import nn

from minip2p.checkpoints.origin import CheckpointOrigin


def non_finite_error(networks: Mapping[str, nn.Module], origin: CheckpointOrigin, what: str) -> ValueError:
    """The error to raise where a result is not finite. It names the first damaged weight, if there is one.

    networks: by the names of their folders. what: the sentence that says which result it is.
    """
    for name, network in networks.items():
        for key, weight in network.named_parameters():
            if not torch.isfinite(weight).all():
                file = origin.files.get(name, name)
                return ValueError(f"{file}: {key} is not finite: the weights are damaged")
    return ValueError(f"{what}; try --dtype float32 or less guidance")
