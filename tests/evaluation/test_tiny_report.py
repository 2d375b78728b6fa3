"""The report on the model that ships: its figures by hand, and its table."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from minip2p.attention.masks import heatmap_to_mask
from minip2p.evaluation import tiny_report
from minip2p.evaluation.tiny_cases import held_out_scenes
from minip2p.evaluation.tiny_report import card_table, case_means, generation_figures, judge_figures, write_card
from minip2p.io.images import to_pil
from minip2p.metrics.frechet import frechet_distance
from minip2p.tiny.judge_data import reconstruct
from minip2p.tiny.render import render_batch
from minip2p.tiny.scenes import OBJECTS
from minip2p.tiny.sprites import Sprites


@pytest.fixture(scope="module")
def sprites():
    """A disc for every object."""
    disc = np.zeros((64, 64, 4), np.uint8)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    disc[x**2 + y**2 < 0.9] = (220, 40, 120, 255)
    return Sprites(dict.fromkeys(OBJECTS, disc))


def test_maps_are_read_in_the_middle_of_the_schedule(cpu_model, monkeypatch):
    """The render is noised to that step; masks are made at the published threshold, with the max-pool and without."""
    calls, masks = [], []

    def unet(x, t, context, attend):
        calls.append((t, x))
        return cpu_model.unet(x, t, context, attend)

    def make_mask(heat, size, threshold, pool=True):
        masks.append((threshold, pool))
        return heatmap_to_mask(heat, size, threshold, pool)

    scene = next(held_out_scenes(1, 1))
    rendered = SimpleNamespace(masks={scene.things[0].name: np.ones((128, 128), bool)})
    monkeypatch.setattr(tiny_report, "heatmap_to_mask", make_mask)
    monkeypatch.setattr(tiny_report, "dataset", lambda *_, **__: iter([scene]))
    monkeypatch.setattr(tiny_report, "render", lambda *_: rendered)
    monkeypatch.setattr(tiny_report, "render_batch", lambda *_: torch.zeros(1, 3, 128, 128))
    pipe = SimpleNamespace(vae=cpu_model.vae, text=cpu_model.text, scheduler=cpu_model.scheduler, unet=unet)
    tiny_report.map_iou(pipe, None, 1)
    ((t, x),) = calls
    assert t == 500 and sorted(masks) == [(0.3, False), (0.3, True)]
    x0 = cpu_model.vae.scale(cpu_model.vae.encode(torch.zeros(1, 3, 128, 128))[0])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    alpha_cumprod = cpu_model.scheduler.alphas_cumprod[t]
    torch.testing.assert_close(x, alpha_cumprod.sqrt() * x0 + (1 - alpha_cumprod).sqrt() * noise)


def test_the_vae_is_measured_on_all_renders_and_on_photographs_alone(monkeypatch):
    scene = next(held_out_scenes(1, 1))
    scenes = [replace(scene, style="photo"), replace(scene, style="sketch")]
    monkeypatch.setattr(tiny_report, "dataset", lambda *_, **__: iter(scenes))
    monkeypatch.setattr(tiny_report, "render_batch", lambda batch, sprites: torch.zeros(len(batch), 3, 8, 8))
    errors = torch.tensor([0.2, 0.02])[:, None, None, None]  # of 2: 20 and 40 dB
    monkeypatch.setattr(tiny_report, "reconstruct", lambda pipe, pictures: pictures + errors)
    assert tiny_report.vae_psnr(SimpleNamespace(vae=None), None, 2) == pytest.approx(
        {"vae_psnr": 30, "vae_psnr_photo": 20}, abs=1e-4
    )


class InProcessPool:
    """A pool that measures nothing: every kind of case has the same figures and a small picture."""

    figures = {"psnr_alone": 20.0, "psnr_swap": 23.0, "psnr_blend": 31.0}  # noqa: RUF012

    def __init__(self, folder, steps):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run_all(self, measure, cases):
        return [(self.figures, [Image.new("RGB", (8, 8))])]


def test_gains_are_over_the_same_seed_without_p2p(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_report, "WorkerPool", InProcessPool)
    table, generated = generation_figures(None, 1, 1, tmp_path)
    assert [len(scene.things) for scene, _ in generated] == [1, 2]  # of a swap the source, and of a pair
    assert (table["swap_gain_db"], table["swap_blend_gain_db"]) == (3, 11)
    assert table["different_swaps"] == table["different_pairs"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"swaps.png", "pairs.png", "graded.png"}


def test_the_judge_is_examined_on_renders_and_on_decoded_renders(monkeypatch):
    def examine(judge, sprites, *, count, transform=lambda renders: renders):
        return count, float(transform(torch.ones(1)))

    monkeypatch.setattr(tiny_report, "examine", examine)
    monkeypatch.setattr(tiny_report, "reconstruct", lambda pipe, renders: renders / 2)
    monkeypatch.setattr(tiny_report, "judge_metrics", lambda exam, attributes: {"judge_object": exam[1], "n": exam[0]})
    judge = SimpleNamespace(config=SimpleNamespace(attributes=()))
    figures = judge_figures(SimpleNamespace(vae=None), judge, None, 10)
    assert figures == {"judge_object": 1.0, "n": 60, "judge_object_decoded": 0.5, "n_decoded": 60}


def test_the_distance_is_zero_for_the_decoded_renders_themselves(monkeypatch, sprites, cpu_model):
    """And that of their features by hand: with the colours of the pictures as features, darker ones are apart."""
    scenes = list(held_out_scenes(3, 1))
    decoded = reconstruct(cpu_model.vae, render_batch(scenes, sprites))
    judge = SimpleNamespace(features=lambda picture: picture.flatten(1).mT)

    def distance(pictures):
        return tiny_report.generated_distance(cpu_model, judge, sprites, list(zip(scenes, pictures, strict=True)))

    assert distance([to_pil(picture) for picture in decoded]) < 1e-4
    darker = [to_pil((picture - 0.4).clamp(-1, 1)) for picture in decoded]
    real = decoded.mean((2, 3))
    dark = torch.stack([(picture - 0.4).clamp(-1, 1).mean((1, 2)) for picture in decoded])
    assert distance(darker) == pytest.approx(frechet_distance(dark, real), rel=0.02)
    assert np.isnan(tiny_report.generated_distance(cpu_model, judge, sprites, []))


def test_a_mean_is_over_the_cases_that_have_the_figure():
    assert case_means([({"a": 1.0, "b": 0.0}, []), ({"a": 2.0}, [])]) == {"a": 1.5, "b": 0.0}


def test_the_card_gets_the_table_in_its_own_order(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n", encoding="utf-8")
    write_card(card, card_table({"style": 0.5, "vae_psnr": 26.5, "object": 0.25, "different_pairs": 7}, 40, 50, 4.0))
    text = card.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- table -->\n40 cases") and text.endswith("<!-- end of table -->\nafter\n")
    assert "old" not in text and "| different_pairs | 7 |" in text
    assert text.index("| vae_psnr | 26.500 | 26 |") < text.index("| object | 0.250 | 0.90 |")
    assert text.index("| object") < text.index("| style | 0.500 | 0.95 |")


def test_every_figure_of_the_committed_card_has_a_meaning_in_the_table():
    lines = tiny_report.CARD.read_text(encoding="utf-8").partition("<!-- table -->")[2].splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ") and "---" not in line]
    assert set(tiny_report.MEANINGS) <= set(names)


def test_a_report_needs_cases(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--cases", "0"])
    assert tiny_report.main() == 2
    assert "--cases must be at least 1" in capsys.readouterr().err
