"""No examination uses training data: which scenes every examination and every training asks for."""

from types import SimpleNamespace

import pytest
import torch
from judges import random_judge

from minip2p.evaluation import tiny_cases, tiny_report
from minip2p.tiny import batches, judge_exam, judge_train, latents, scene_store, scenes, train_vae
from minip2p.tiny.export import load_tokenizer


@pytest.fixture
def requests(monkeypatch):
    """The arguments of each call of `dataset` during a test: (seed, held out, fixed values)."""
    calls = []

    def dataset(seed, n, *, start=0, held_out=False, **fixed):
        calls.append((seed, held_out, fixed))
        return scenes.dataset(seed, n, start=start, held_out=held_out, **fixed)

    for module in (tiny_cases, tiny_report, batches, judge_exam, judge_train, latents, scene_store, train_vae):
        monkeypatch.setattr(module, "dataset", dataset)
    return calls


def test_examinations_use_held_out_scenes(requests, cpu_model, sprites):
    named = {"name_place": True, "name_colour": True}
    tiny_report.vae_psnr(cpu_model, sprites, 1)
    tiny_report.map_iou(cpu_model, sprites, 1)
    judge_exam.examine(random_judge(), sprites, count=40)
    list(tiny_cases.swap_cases(1))
    list(tiny_cases.held_out_scenes(1, 2))
    tiny_cases.graded_cases(3)
    fixed = {"objects": 1, "style": "photo", "strength": 0.5, "name_place": True}
    graded = [
        fixed | {"background": background, "attribute": attribute}
        for attribute, background in (("fog", "street"), ("flowers", "beach"), ("snow", "street"))
    ]
    assert requests == [
        (9001, True, {}),
        (9001, True, {}),
        (7001, True, {}),
        (9002, True, named | {"objects": 1}),
        (9003, True, named | {"objects": 2}),
        *((9004, True, values) for values in graded),
    ]


def test_trainings_use_the_other_split_and_other_seeds(requests, cpu_model, sprites, tmp_path, monkeypatch):
    judge_train.judge_batch(5, 3, sprites, cpu_model.vae)
    train_vae.vae_batch(3, 0, sprites)
    train_vae.vae_batch(3, train_vae.CROP_STEPS, sprites)
    batches.draw_captions(3, 0, torch.tensor([1]))
    monkeypatch.setattr(latents, "CHUNK", 32)
    vae = SimpleNamespace(encode=lambda x: (torch.zeros(len(x), 4, 16, 16), None))
    latents.LatentCache(tmp_path, vae, 3, sprites).load_chunk(0)
    scene_store.render_share(scene_store.Share(0, 0, 2), 3, False, sprites, load_tokenizer())
    assert requests == [(3, False, {})] * 6
