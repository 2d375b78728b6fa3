"""Judges with random weights."""

import torch

from minip2p.tiny.judge import Judge
from minip2p.tiny.judge_network import JudgeConfig, JudgeNetwork

SMALL_JUDGE = JudgeConfig(widths=(12, 12, 24, 24))


def random_judge(config=SMALL_JUDGE, seed=0):
    torch.manual_seed(seed)
    return Judge(JudgeNetwork(config), config)
