"""A training loop that can be killed at any time. It resumes from its last checkpoint, with exactly the same steps.

The random draws of step i come from a generator seeded with (seed, i), so no random state needs saving. A checkpoint is
one safetensors file, written completely or not at all: the parameters, their exponential moving average (EMA) and the
optimizers' moments. Nothing is ever unpickled.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor, nn

from minip2p.io.files import shipped_weights
from minip2p.io.tensors import write_tensors
from minip2p.tiny.muon import Muon, multiplies_bfloat16


def seeded_generator(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose. The order of the seeds matters: (0, 1) and (1, 0) give unrelated draws."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 6364136223846793005 + seed + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(mixed)


def half_precision(device: torch.device) -> torch.autocast:
    """A context that computes in bfloat16 if the device can multiply bfloat16 matrices, and else does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" or multiplies_bfloat16(device))


def cooldown(position: float, length: float, share: float = 0.3) -> float:
    """A learning rate factor for a run of known length, in steps or in seconds: 1, then linearly to 0 over the last
    `share` of the run."""
    return min(1.0, max(0.0, 1 - position / length) / share)


def inverse_root(step: int, plateau: int = 3000) -> float:
    """A learning rate factor for a run without a fixed end: 1, and √(plateau / step) from step `plateau` on.

    With the moving average of the weights, the run needs no decay at its end, so it can stop and resume anywhere.
    """
    return min(1.0, math.sqrt(plateau / (step + 1)))


def check_length(steps: int, minutes: float) -> None:
    """Raises ValueError for --steps or --minutes of a training that would end before its first step."""
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")
    if not minutes > 0:
        raise ValueError(f"--minutes must be a number above 0, not {minutes:g}")


def check_batch(batch: int, unit: int) -> None:
    """Raises ValueError if --batch is not a multiple of the pictures or pairs in which the recipe counts its steps."""
    if batch < 1 or batch % unit:
        raise ValueError(f"--batch must be a multiple of {unit}, not {batch}")


def check_device(device: str) -> None:
    """Raises ValueError for --device cuda without an NVIDIA GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no NVIDIA GPU; use --device cpu")


def check_output(out: Path, others: Mapping[str, Path | None], name: str = "--out") -> None:
    """Raises ValueError if the folder of the option `name` is another option's too. others: option -> its folder."""
    for option, folder in others.items():
        if folder is not None and folder.resolve() == out.resolve():
            raise ValueError(f"{name} {out}: is the folder of {option}, which would be overwritten: choose another")


def add_training_options(parser: argparse.ArgumentParser, *, batch: int, steps: int, examples: str) -> None:
    """Adds the options of a training that starts from a model and ends as another. batch, steps: of the recipe.
    examples: what is trained on."""
    parser.add_argument("--model", type=Path, default=shipped_weights("tiny"), help="the model to start from")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints and caches (default .train)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument(
        "--warm",
        type=Path,
        metavar="FOLDER",
        help="start from these weights, unless --work has a checkpoint; --steps counts their steps as well",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps, help=f"of {batch} {examples} each (default {steps})")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time and write the weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--batch", type=int, default=batch, help=f"{examples} in a step, a multiple of {batch} (the default)"
    )


def check_training_options(options: argparse.Namespace, batch: int) -> None:
    """Raises ValueError if values of these options are wrong. batch: of the recipe."""
    check_length(options.steps, options.minutes)
    check_output(options.out, {"--model": options.model, "--warm": options.warm})
    check_device(options.device)
    check_batch(options.batch, batch)


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon trains a parameter: matrices and convolutions, except embeddings and the first and last layers."""
    return p.ndim > 1 and not any(excluded in name for excluded in ("embedding", "conv_in", "conv_out"))


class Training:
    """Trains the parameters of a module with Muon (matrices) and AdamW (the others), and keeps their moving average.

    work: the folder of the checkpoint and the log. learning_rate: step -> learning rate; the first WARMUP steps after
    the start rise to it linearly. steps: the length of the run. ema_decay: of the moving average, per step.

    stride: how many times as large as the recipe's batch the batches are. Steps are counted in batches of the recipe,
    so that a run may go on with larger ones: each step of the optimizers counts for `stride` steps. The learning rate
    grows as the square root of the stride (Malladi et al. 2022, arXiv 2205.10287), and the moving average forgets as
    much per picture as before: its decay is taken to that power (Busbridge et al. 2023, arXiv 2307.13813).
    """

    WARMUP = 200
    MOMENTS = MappingProxyType({"AdamW": ("exp_avg", "exp_avg_sq"), "Muon": ("momentum",)})

    def __init__(
        self,
        module: nn.Module,
        work: Path,
        *,
        learning_rate: Callable[[int], float],
        steps: int,
        ema_decay: float,
        seed: int = 0,
        stride: int = 1,
    ):
        self.module = module
        self.work = work
        self.learning_rate = learning_rate
        self.steps = steps
        self.ema_decay = ema_decay
        self.seed = seed
        self.stride = stride
        self.parameters = dict(module.named_parameters())
        matrices = {name: p for name, p in self.parameters.items() if is_matrix(name, p)}
        others = [p for name, p in self.parameters.items() if name not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = []
        if others:
            self.optimizers.append(torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.01, fused=True))
        if matrices:
            self.optimizers.append(Muon(matrices.values()))
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step = self.start = 0

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def age(self) -> int:
        """How many steps the optimizers have taken since the start."""
        return (self.step - self.start) // self.stride

    def current_learning_rate(self) -> float:
        """The learning rate at the current step, with the warm-up."""
        return self.learning_rate(self.step) * math.sqrt(self.stride) * min(1.0, (self.age + 1) / self.WARMUP)

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint.safetensors"

    def save(self) -> None:
        """Writes the checkpoint."""
        tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in self.parameters.items()}
        tensors |= {f"ema.{n}": p for n, p in self.average.items()}
        names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        for optimizer in self.optimizers:
            for p, state in optimizer.state.items():
                for key in self.MOMENTS[type(optimizer).__name__]:
                    tensors[f"{key}.{names[p]}"] = state[key]
        metadata = {"step": self.step, "start": self.start, "seed": self.seed}
        write_tensors(tensors, self.checkpoint, {name: str(value) for name, value in metadata.items()})

    @torch.no_grad()
    def warm_start(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Starts from these weights at `step`. The moments and the warm-up of the learning rate start from zero."""
        for name, p in self.parameters.items():
            p.copy_(weights[name])
            self.average[name].copy_(p)
        self.step = self.start = step

    @torch.no_grad()
    def resume(self) -> None:
        """Loads the checkpoint, if there is one. The next step is then exactly the one that would have followed it.

        Raises ValueError if the checkpoint was made with another seed.
        """
        if not self.checkpoint.exists():
            return
        with safe_open(self.checkpoint, "pt") as f:
            metadata = f.metadata()
            if int(metadata["seed"]) != self.seed:
                raise ValueError(
                    f"{self.checkpoint}: made with seed {metadata['seed']}: resume with that seed, or use a new folder"
                )
            self.step, self.start = int(metadata["step"]), int(metadata["start"])
            for name, p in self.parameters.items():
                p.copy_(f.get_tensor(f"model.{name}"))
                self.average[name].copy_(f.get_tensor(f"ema.{name}"))
            names = {p: name for name, p in self.parameters.items()}
            for optimizer in self.optimizers:
                keys = self.MOMENTS[type(optimizer).__name__]
                for p in optimizer.param_groups[0]["params"]:
                    if f"{keys[0]}.{names[p]}" not in f.keys():  # noqa: SIM118, not a dict
                        continue  # the parameter has had no gradient yet
                    # In the parameter's own memory format: AdamW's fused kernel reads both in the order of memory.
                    moments = {key: torch.empty_like(p).copy_(f.get_tensor(f"{key}.{names[p]}")) for key in keys}
                    optimizer.state[p] = {"step": torch.tensor(float(self.age), device=p.device), **moments}

    @torch.no_grad()
    def freeze(self, module: nn.Module) -> None:
        """Fixes the parameters of a submodule at their moving average, permanently. The others train on."""
        frozen = set(module.parameters())
        for name, p in self.parameters.items():
            if p in frozen:
                p.copy_(self.average[name]).requires_grad_(False)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the module has the averaged weights."""

        def swap() -> None:
            for name, p in self.parameters.items():
                p.data, self.average[name] = self.average[name], p.data

        swap()
        try:
            yield
        finally:
            swap()

    @torch.no_grad()
    def load_average(self) -> None:
        """Replaces the parameters by their moving average, for use or export. The training cannot continue after it."""
        for name, p in self.parameters.items():
            p.copy_(self.average[name])

    def run(
        self,
        loss: Callable[[int], Tensor],
        *,
        preview: Callable[[], None] = lambda: None,
        preview_every: int | None = 500,
        save_every: float = 180.0,
        stop_at: float = math.inf,
    ) -> None:
        """Resumes, and trains until `steps` are done or the clock (time.time()) passes `stop_at`. Appends to log.jsonl.

        loss(step) must depend on nothing random but the step. Gradients are clipped to norm 1. `preview` is called
        every `preview_every` steps of the optimizers; a checkpoint is written then, and every `save_every` seconds.
        With None it is called with every checkpoint.
        Raises FloatingPointError if a gradient is not finite. On a CPU that is before its step. A GPU would wait for
        every look at a number, so there it is 50 steps late at most, and before a checkpoint is written.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        self.resume()
        saved, log = time.time(), TrainingLog(self)
        while self.step < self.steps and time.time() < stop_at:
            value = loss(self.step)
            self.module.zero_grad(set_to_none=True)
            value.backward()
            log.add(value.detach(), nn.utils.clip_grad_norm_(self.parameters.values(), 1.0))
            if self.device.type == "cpu":
                log.check()
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = self.current_learning_rate()
                optimizer.step()
            self.step += self.stride
            # A young average decays faster, so that it does not remember the start.
            decay = min(self.ema_decay**self.stride, (1 + self.age) / (10 + self.age))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
            steps_taken = self.step // self.stride
            if steps_taken % 50 == 0:
                log.write()
            is_late = time.time() - saved > save_every
            is_preview = is_late if preview_every is None else steps_taken % preview_every == 0
            if is_late or is_preview:
                log.check()
                self.save()
                saved = time.time()
            if is_preview:
                preview()
                log.since += time.time() - saved
        log.check()
        self.save()


class TrainingLog:
    """Writes the mean loss and the seconds per step to log.jsonl and the terminal."""

    def __init__(self, training: Training):
        self.training = training
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.total_loss = self.total_norm = torch.zeros((), device=self.training.device)
        self.since = time.time()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Counts a step with its loss and the norm of its gradient."""
        self.count += 1
        self.total_loss = self.total_loss + loss
        self.total_norm = self.total_norm + norm

    def check(self) -> None:
        """Raises FloatingPointError if a gradient since the last row was not finite."""
        if not torch.isfinite(self.total_norm):
            step, checkpoint = self.training.step, self.training.checkpoint
            raise FloatingPointError(f"step {step}: the gradient is not finite; last good: {checkpoint}")

    def write(self) -> None:
        """Writes a row and starts the next."""
        self.check()
        step, name = self.training.step, self.training.work.name
        loss, seconds = float(self.total_loss) / self.count, (time.time() - self.since) / self.count
        row = {"step": step, "loss": round(loss, 5), "seconds": round(seconds, 3)}
        with open(self.training.work / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        print(f"{name} {step}/{self.training.steps} loss {loss:.4f} {seconds:.2f} s/step", flush=True)
        self.reset()
