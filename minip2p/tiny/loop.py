"""A training loop that survives a kill: every step is a pure function of (seed, step), every checkpoint is whole.

A checkpoint is one safetensors file: parameters, their moving average (EMA) and AdamW's two moments. Nothing is ever
unpickled, and no random state needs saving: step i draws its data and noise from a generator seeded with (seed, i).
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def generator(*seed: int) -> torch.Generator:
    """A generator for one purpose: the seeds are mixed, so that (0, 1) and (1, 0) have nothing in common."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes to a temporary name, then renames: a kill leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def cosine(step: int, steps: int) -> float:
    """The factor on the learning rate: half a cosine from one down to a hundredth."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def inverse_root(step: int, level: int = 3000) -> float:
    """The factor on the learning rate of a run without a last step: one, and from `level` on √(level/step).
    With the moving average it needs no decay at its end, so it can stop and go on anywhere."""
    return min(1.0, math.sqrt(level / (step + 1)))


class Training:
    """Parameters under training, with AdamW and a moving average. `run` goes on from the last checkpoint.

    `rate` gives the learning rate at a step; the first WARMUP steps after the start rise to it linearly.
    """

    WARMUP = 200

    def __init__(self, module: nn.Module, work: Path, *, rate: Callable[[int], float], steps: int, ema: float):
        self.module, self.work, self.rate, self.steps, self.ema_decay = module, work, rate, steps, ema
        self.named = dict(module.named_parameters())
        self.optimizer = torch.optim.AdamW(self.named.values(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        self.step = self.start = 0

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint.safetensors"

    def save(self) -> None:
        tensors = {f"model.{n}": p for n, p in self.named.items()} | {f"ema.{n}": p for n, p in self.average.items()}
        for name, p in self.named.items():
            for key in ("exp_avg", "exp_avg_sq"):
                if p in self.optimizer.state:
                    tensors[f"{key}.{name}"] = self.optimizer.state[p][key]
        write_safetensors(tensors, self.checkpoint, {"step": str(self.step), "start": str(self.start)})

    @torch.no_grad()
    def begin(self, weights: Mapping[str, Tensor], step: int) -> None:
        """A warm start: these weights, counted on from `step`. AdamW's moments begin anew, and so does the warm-up."""
        for name, p in self.named.items():
            p.copy_(weights[name])
            self.average[name].copy_(p)
        self.step = self.start = step

    @torch.no_grad()
    def resume(self) -> None:
        """Takes up the checkpoint if there is one. Exact: the next step is the one that a kill prevented."""
        if not self.checkpoint.exists():
            return
        with safe_open(self.checkpoint, "pt") as f:
            self.step, self.start = (int(f.metadata()[name]) for name in ("step", "start"))
            for name, p in self.named.items():
                p.copy_(f.get_tensor(f"model.{name}"))
                self.average[name].copy_(f.get_tensor(f"ema.{name}"))
                if f"exp_avg.{name}" in f.keys():  # noqa: SIM118, not a dict
                    self.optimizer.state[p] = {
                        "step": torch.tensor(float(self.step - self.start)),
                        "exp_avg": f.get_tensor(f"exp_avg.{name}").clone(),
                        "exp_avg_sq": f.get_tensor(f"exp_avg_sq.{name}").clone(),
                    }

    @torch.no_grad()
    def averaged(self) -> None:
        """Puts the moving average in the parameters' place, for use or export. Training cannot go on from here."""
        for name, p in self.named.items():
            p.copy_(self.average[name])

    def run(
        self,
        loss: Callable[[int], Tensor],
        *,
        show: Callable[[], None] = lambda: None,
        show_every: int = 500,
        save_every: float = 180.0,
        stop_at: float = math.inf,
    ) -> None:
        """Steps until `steps` are done or the clock passes `stop_at` (time.time()). Appends to log.jsonl.

        loss(step) must be deterministic in the step. Gradients are clipped to norm 1. `show` is called every so many
        steps, to write what one looks at.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        self.resume()
        saved, logged, total, since = time.time(), self.step, 0.0, time.time()
        while self.step < self.steps and time.time() < stop_at:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step) * min(1.0, (self.step - self.start + 1) / self.WARMUP)
            value = loss(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(self.named.values(), 1.0)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"step {self.step}: the gradient is not finite; last good: {self.checkpoint}")
            self.optimizer.step()
            self.step += 1
            # A young average forgets faster, so that it is never older than the run.
            age = self.step - self.start
            decay = min(self.ema_decay, (1 + age) / (10 + age))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.named.values()), 1 - decay)
            total += value.item()
            if self.step % 50 == 0:
                spent = (time.time() - since) / (self.step - logged)
                row = {"step": self.step, "loss": round(total / (self.step - logged), 5), "seconds": round(spent, 3)}
                with open(self.work / "log.jsonl", "a", encoding="utf-8") as f:
                    f.write(json.dumps(row) + "\n")
                print(
                    f"{self.work.name} {self.step}/{self.steps} loss {row['loss']:.4f} {spent:.2f} s/step", flush=True
                )
                logged, total, since = self.step, 0.0, time.time()
            if self.step % show_every == 0:
                show()
            if time.time() - saved > save_every:
                self.save()
                saved = time.time()
        self.save()
