"""A training loop that survives a kill: what a step draws depends on (seed, step) alone, every checkpoint is whole.

A checkpoint is one safetensors file: parameters, their moving average (EMA) and the optimizers' moments. Nothing is
ever unpickled, and no random state needs saving: step i draws its data and noise from a generator seeded with
(seed, i).
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor, nn

from minip2p.io.tensors import write_tensors
from minip2p.tiny.muon import Muon


def generator(*seed: int) -> torch.Generator:
    """A generator for one purpose: the seeds are mixed, so that (0, 1) and (1, 0) have nothing in common."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def half_precision() -> torch.autocast:
    """bfloat16 where the processor multiplies matrices in it, else a context that does nothing."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cooldown(step: int, steps: int, share: float = 0.3) -> float:
    """The factor on the learning rate of a run of so many steps: one, and linearly to zero over its last share."""
    return min(1.0, (1 - step / steps) / share)


def inverse_root(step: int, level: int = 3000) -> float:
    """The factor on the learning rate of a run without a last step: one, and from `level` on √(level/step).
    With the moving average it needs no decay at its end, so it can stop and go on anywhere."""
    return min(1.0, math.sqrt(level / (step + 1)))


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon trains a parameter: matrices and convolutions but for embeddings, the first layer and the last."""
    return p.ndim > 1 and not any(part in name for part in ("embedding", "conv_in", "conv_out"))


class Training:
    """Parameters under training by Muon (matrices) and AdamW (the others), with a moving average. `run` goes on from
    the last checkpoint.

    `rate` gives the learning rate at a step; the first WARMUP steps after the start rise to it linearly.
    """

    WARMUP = 200
    MOMENTS = MappingProxyType({"AdamW": ("exp_avg", "exp_avg_sq"), "Muon": ("momentum",)})

    def __init__(
        self, module: nn.Module, work: Path, *, rate: Callable[[int], float], steps: int, ema: float, seed: int = 0
    ):
        self.module, self.work, self.rate, self.steps, self.ema_decay = module, work, rate, steps, ema
        self.seed = seed
        self.named = dict(module.named_parameters())
        matrices = {name: p for name, p in self.named.items() if is_matrix(name, p)}
        others = [p for name, p in self.named.items() if name not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = []
        if others:
            self.optimizers.append(torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.01, fused=True))
        if matrices:
            self.optimizers.append(Muon(matrices.values()))
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        self.step = self.start = 0

    def rate_now(self) -> float:
        return self.rate(self.step) * min(1.0, (self.step - self.start + 1) / self.WARMUP)

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint.safetensors"

    def save(self) -> None:
        tensors = {f"model.{n}": p for n, p in self.named.items()} | {f"ema.{n}": p for n, p in self.average.items()}
        names: dict[Tensor, str] = {p: name for name, p in self.named.items()}
        for optimizer in self.optimizers:
            for p, state in optimizer.state.items():
                for key in self.MOMENTS[type(optimizer).__name__]:
                    tensors[f"{key}.{names[p]}"] = state[key]
        said = {"step": self.step, "start": self.start, "seed": self.seed}
        write_tensors(tensors, self.checkpoint, {name: str(value) for name, value in said.items()})

    @torch.no_grad()
    def begin(self, weights: Mapping[str, Tensor], step: int) -> None:
        """A warm start: these weights, counted on from `step`. The moments begin anew, and so does the warm-up."""
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
            said = f.metadata()
            if int(said["seed"]) != self.seed:
                raise ValueError(f"{self.checkpoint}: made with seed {said['seed']}: go on with it, or in a new folder")
            self.step, self.start = int(said["step"]), int(said["start"])
            for name, p in self.named.items():
                p.copy_(f.get_tensor(f"model.{name}"))
                self.average[name].copy_(f.get_tensor(f"ema.{name}"))
            names = {p: name for name, p in self.named.items()}
            for optimizer in self.optimizers:
                keys = self.MOMENTS[type(optimizer).__name__]
                for p in optimizer.param_groups[0]["params"]:
                    if f"{keys[0]}.{names[p]}" not in f.keys():  # noqa: SIM118, not a dict
                        continue  # it had no gradient yet
                    # In the parameter's own memory format: AdamW's fused step reads both by their order in memory.
                    moments = {key: torch.empty_like(p).copy_(f.get_tensor(f"{key}.{names[p]}")) for key in keys}
                    optimizer.state[p] = {"step": torch.tensor(float(self.step - self.start)), **moments}

    @torch.no_grad()
    def freeze(self, module: nn.Module) -> None:
        """Fixes a part at its moving average, for good; the rest trains on."""
        fixed = set(module.parameters())
        for name, p in self.named.items():
            if p in fixed:
                p.copy_(self.average[name]).requires_grad_(False)

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
        saved, log = time.time(), Log(self)
        while self.step < self.steps and time.time() < stop_at:
            value = loss(self.step)
            self.module.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(self.named.values(), 1.0)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"step {self.step}: the gradient is not finite; last good: {self.checkpoint}")
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = self.rate_now()
                optimizer.step()
            self.step += 1
            # A young average forgets faster, so that it is never older than the run.
            age = self.step - self.start
            decay = min(self.ema_decay, (1 + age) / (10 + age))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.named.values()), 1 - decay)
            log.add(value.item())
            if time.time() - saved > save_every or self.step % show_every == 0:
                self.save()
                saved = time.time()
            if self.step % show_every == 0:
                show()
                log.since += time.time() - saved
        self.save()


class Log:
    """The mean loss and the time of a step, a row for every 50 steps, in log.jsonl and on the terminal."""

    def __init__(self, training: Training):
        self.training, self.first, self.total, self.since = training, training.step, 0.0, time.time()

    def add(self, loss: float) -> None:
        self.total += loss
        step, name = self.training.step, self.training.work.name
        if step % 50:
            return
        count, spent = step - self.first, time.time() - self.since
        row = {"step": step, "loss": round(self.total / count, 5), "seconds": round(spent / count, 3)}
        with open(self.training.work / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        print(f"{name} {step}/{self.training.steps} loss {row['loss']:.4f} {row['seconds']:.2f} s/step", flush=True)
        self.first, self.total, self.since = step, 0.0, time.time()
