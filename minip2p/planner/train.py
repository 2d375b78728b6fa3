"""Trains the tagger on synthesised instructions: `python -m minip2p.planner.train`, some minutes on one thread."""

import argparse
import random
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.errors import run_guarded
from minip2p.planner.tagger import FOLDER, INTENTS, TAGS, Batch, Tagger, TaggerNetwork, text_words
from minip2p.planner.templates import Example, make_example

STEPS, BATCH, RATE = 8000, 64, 3e-3
IGNORED = -100  # the tag of padding


def loss_of(network: TaggerNetwork, examples: Sequence[Example]) -> Tensor:
    """The cross-entropy of the intents plus that of the tags."""
    batch = Batch.of([(example.words, text_words(example.caption)) for example in examples])
    intents, tags = network(batch.grams, batch.offsets, batch.features, batch.lengths)
    wanted = torch.full(tags.shape[:2], IGNORED)
    for row, example in enumerate(examples):
        wanted[row, : len(example.tags)] = torch.tensor([TAGS.index(tag) for tag in example.tags])
    of_intents = F.cross_entropy(intents, torch.tensor([INTENTS.index(example.intent) for example in examples]))
    return of_intents + F.cross_entropy(tags.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def train(steps: int = STEPS, *, batch: int = BATCH, seed: int = 0, log: bool = True) -> Tagger:
    """A new tagger. AdamW, the learning rate falls to zero as a cosine. The same seed gives the same weights."""
    torch.manual_seed(seed)
    rng, network = random.Random(seed), TaggerNetwork().train()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.05)
    begin, mean = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = loss_of(network, [make_example(rng) for _ in range(batch)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (float(loss.detach()) - mean) / min(step, 100)
        if log and (step % 250 == 0 or step == steps):
            print(f"step {step} of {steps}: loss {mean:.3f}, {time.monotonic() - begin:.0f} s", flush=True)
    return Tagger(network)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the training from the command line."""
    parser = argparse.ArgumentParser("python -m minip2p.planner.train", description="train the tagger of the planner")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"(default: {STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of weights and instructions (default: 0)")
    parser.add_argument("--out", default=FOLDER, metavar="FOLDER", help="(default: weights/planner)")
    args = parser.parse_args(argv)
    return run_guarded(lambda: train(args.steps, seed=args.seed).save(args.out))


if __name__ == "__main__":
    raise SystemExit(main())
