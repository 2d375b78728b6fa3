"""The training scenes in the memory of a device: worker processes render and caption them, the device encodes them.

A GPU trains on thousands of pictures a second, and a CPU core renders about fifty. So every scene is rendered once,
with several captions, while the training already goes on with the first of them.

Axes: n scenes, b batch, k captions of a scene, c latent channels, s slots, j tokens, H W height and width of a picture,
h w of its latent.
"""

import queue
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minip2p.text.prompt import Prompt
from minip2p.tiny.batches import CAPTION_DROP, VALIDATION, Batch, draw_indices, random_caption
from minip2p.tiny.export import load_tokenizer
from minip2p.tiny.grounding import slot_regions, token_slots
from minip2p.tiny.judge_data import LabelledBatch, label_renders
from minip2p.tiny.judge_network import JudgeConfig
from minip2p.tiny.latents import CHUNK, scenes_available
from minip2p.tiny.loop import half_precision, seeded_generator
from minip2p.tiny.processes import start_worker
from minip2p.tiny.render import render
from minip2p.tiny.scenes import dataset
from minip2p.tiny.sprites import Sprites
from minip2p.vae import VAE

CAPTIONS = 8  # of each scene
PICTURES_A_SCENE = 20  # a training goes on to further scenes so slowly that it need not wait for them
SHARE = 256  # scenes that a worker renders at a time
VALIDATION_START = 10**6  # the number of the first scene of the validation

Arrays = dict[str, np.ndarray]


class Share(NamedTuple):
    """Scenes start … start + size − 1, which become the rows from `row` on."""

    row: int
    start: int
    size: int


def render_share(share: Share, seed: int, directions: bool, sprites: Sprites, tokenizer: Any) -> Arrays:
    """All that the trainings need of the scenes of a share, as arrays with an axis n.

    pictures and corrupted (see `corrupt_picture`): H W 3 uint8. regions: s h w, of 255. labels, present, colours,
    background, style, strength: see `LabelledBatch`. token_ids and slots: k j.
    """
    scenes = list(dataset(seed, share.size, start=share.start))
    renders = [render(scene, sprites) for scene in scenes]
    batch = label_renders(scenes, renders, JudgeConfig(), corrupt_seed=seed)
    token_ids, slots = [], []
    for i, scene in enumerate(scenes, share.start):
        rng = np.random.default_rng((seed, i, 3))
        prompts = [Prompt.tokenize(random_caption(rng, scene, directions), tokenizer) for _ in range(CAPTIONS)]
        token_ids.append([prompt.ids for prompt in prompts])
        slots.append([token_slots(scene, prompt) for prompt in prompts])
    return {
        "pictures": np.stack([r.picture for r in renders]),
        "corrupted": ((batch.pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(),
        "regions": np.stack([slot_regions(scene, r) for scene, r in zip(scenes, renders, strict=True)]),
        "labels": batch.labels.numpy().astype(np.uint8),
        "present": batch.present.numpy().astype(np.uint8),
        "colours": batch.colours.numpy().astype(np.int8),
        "background": batch.background.numpy().astype(np.uint8),
        "style": batch.style.numpy().astype(np.uint8),
        "strength": batch.strength.numpy(),
        "token_ids": np.array(token_ids, np.int16),
        "slots": np.array(slots, np.int8),
    }


def render_shares(
    shares: Sequence[tuple[int, Share]],
    seed: int,
    directions: bool,
    load_sprites: Callable[[], Sprites],
    results: Any,
) -> None:
    """A worker process: renders numbered shares one after the other, and puts (number, arrays) into the queue.

    After an error it puts (−1, the error's text) and ends.
    """
    start_worker()
    try:
        sprites, tokenizer = load_sprites(), load_tokenizer()
        for number, share in shares:
            results.put((number, render_share(share, seed, directions, sprites, tokenizer)))
    except Exception:
        results.put((-1, traceback.format_exc(limit=-3)))


class SceneStore:
    """The scenes 0 … count − 1 of a seed in the memory of a device, and some for validation. A `BatchSource`.

    workers: the number of worker processes, which start at once. load_sprites: a function that a worker can unpickle.
    directions: see `caption_for`. Draws depend on the seed, the step and the number of pictures since the start of a
    training; they wait for scenes that have not arrived yet. Use it as a context: the workers end with it.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        load_sprites: Callable[[], Sprites],
        *,
        workers: int,
        device: torch.device,
        directions: bool = False,
    ):
        self.count, self.seed, self.device = count, seed, device
        self.validation_count = max(1, min(VALIDATION, count // 16))
        self.total = count + self.validation_count
        parts = [(count, VALIDATION_START, self.validation_count), (0, 0, count)]
        self.shares = [
            Share(row + offset, start + offset, min(SHARE, size - offset))
            for row, start, size in parts
            for offset in range(0, size, SHARE)
        ]
        self.arrived: set[int] = set()  # the numbers of the shares that are in `rows`
        self.rows: dict[str, Tensor] = {}
        self.vae: VAE | None = None
        self.empty_ids = torch.tensor(Prompt.tokenize("", load_tokenizer()).ids, device=device)
        context = get_context("spawn")
        self.results = context.Queue()
        numbered = list(enumerate(self.shares))
        self.processes = [
            context.Process(
                target=render_shares,
                args=(numbered[n::workers], seed, directions, load_sprites, self.results),
                daemon=True,
            )
            for n in range(workers)
        ]

    def __enter__(self) -> "SceneStore":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()

    def receive(self, timeout: float) -> bool:
        """Stores the next share that has been rendered; False if none is there within `timeout` seconds.

        Raises ValueError if a worker failed.
        """
        try:
            number, arrays = self.results.get(timeout=timeout) if timeout else self.results.get_nowait()
        except queue.Empty:
            if any(process.exitcode for process in self.processes):
                raise ValueError("a process that renders scenes was ended; is there enough memory?") from None
            return False
        if number < 0:
            raise ValueError(f"a process that renders scenes failed: {arrays}")
        share = self.shares[number]
        for name, array in arrays.items():
            if name not in self.rows:
                device = "cpu" if name == "slots" else self.device
                dtype = torch.from_numpy(array).dtype
                self.rows[name] = torch.zeros((self.total, *array.shape[1:]), dtype=dtype, device=device)
            self.rows[name][share.row : share.row + share.size] = torch.from_numpy(array)
        self.arrived.add(number)
        self.encode(share)
        return True

    def wait_for(self, count: int) -> None:
        """Returns when the validation's scenes and the first `count` others are there; stores what else has arrived."""
        last = min(count, self.count) - 1
        needed = {number for number, share in enumerate(self.shares) if share.row <= last or share.row >= self.count}
        while not needed <= self.arrived:
            self.receive(timeout=1.0)
        for _ in range(4):
            if not self.receive(timeout=0.0):
                break

    def available(self, pictures: int) -> int:
        """The number of scenes to draw from after so many pictures of a training. They are there when it returns."""
        count = scenes_available(pictures, limit=self.count, pictures_a_scene=PICTURES_A_SCENE)
        if len(self.arrived) < len(self.shares):
            self.wait_for(count)
        return count

    @torch.no_grad()
    def encode(self, share: Share) -> None:
        """Encodes the pictures of a share, if there is an encoder."""
        if self.vae is None:
            return
        rows = torch.arange(share.row, share.row + share.size, device=self.device)
        with half_precision(self.device):
            latents = self.vae.encode(self.pictures(rows))[0]
        if "latents" not in self.rows:
            self.rows["latents"] = latents.new_zeros((self.total, *latents.shape[1:]), dtype=torch.float16)
        self.rows["latents"][rows] = latents.half()

    def set_vae(self, vae: VAE) -> None:
        """Takes a VAE on the store's device: its encoder for all scenes, those that are there and those that arrive
        later; its decoder for the judge's batches."""
        self.vae = vae
        for number in sorted(self.arrived):
            self.encode(self.shares[number])

    def pictures(self, rows: Tensor, name: str = "pictures") -> Tensor:
        """The pictures of these rows: b 3 H W in [-1, 1], channels_last."""
        return self.rows[name][rows].permute(0, 3, 1, 2).float() / 127.5 - 1

    def picture_batch(self, step: int, pictures: int, size: int) -> Tensor:
        """Pictures b 3 H W for a step of a training that has seen so many."""
        return self.pictures(draw_indices(self.seed, step, size, self.available(pictures)).to(self.device))

    def judge_batch(self, step: int, pictures: int, size: int) -> LabelledBatch:
        """A batch for the judge: one half decoded from their latents, the other corrupted."""
        assert self.vae is not None
        rows = draw_indices(self.seed, step, size, self.available(pictures)).to(self.device)
        batch = self.pictures(rows, "corrupted")
        with torch.no_grad(), half_precision(self.device):
            batch[::2] = self.vae.decode(self.rows["latents"][rows[::2]].float()).clamp(-1, 1).float()
        labels = {name: self.rows[name][rows].long() for name in ("labels", "colours", "background", "style")}
        values = {name: self.rows[name][rows].float() for name in ("present", "strength")}
        return LabelledBatch(batch, **labels, **values)

    def batch(self, step: int, age: int, size: int) -> Batch:
        rows = draw_indices(self.seed, step, size, self.available(age))
        generator = seeded_generator(self.seed, step, 5)
        choice = torch.randint(0, CAPTIONS, (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < CAPTION_DROP
        return self.captioned(rows, choice, dropped)

    def validation(self) -> Batch:
        self.wait_for(0)
        none = torch.zeros(self.validation_count, dtype=torch.long)
        return self.captioned(torch.arange(self.count, self.total), none, none > 0)

    def captioned(self, rows: Tensor, choice: Tensor, dropped: Tensor) -> Batch:
        """The batch of these rows with the chosen captions; the dropped ones are empty. All three are b, on the CPU."""
        slots = self.rows["slots"][rows, choice].long()
        slots[dropped] = -1
        rows, choice, dropped = (tensor.to(self.device, non_blocking=True) for tensor in (rows, choice, dropped))
        token_ids = torch.where(dropped[:, None], self.empty_ids, self.rows["token_ids"][rows, choice].long())
        return Batch(self.rows["latents"][rows].float(), self.rows["regions"][rows].float() / 255, token_ids, slots)

    def scaling_factor(self) -> float:
        first = min(self.count, CHUNK)
        self.wait_for(first)
        return 1 / float(self.rows["latents"][:first].float().std())
