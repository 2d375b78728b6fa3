"""The judge: its verdicts, and strict loading of its weights."""

import json
from dataclasses import replace

import pytest
import torch
from judges import SMALL_JUDGE, random_judge
from safetensors.torch import load_file, save_file

from minip2p.tiny.judge import Judge
from minip2p.tiny.scenes import OBJECTS


def test_a_verdict_has_the_documented_shapes():
    verdict = random_judge()(torch.rand(2, 3, 64, 128) * 2 - 1)
    expected = {
        "objects": (2, 30),
        "foreground": (2, 64, 128),
        "classes": (2, 30, 16, 32),
        "colours": (2, 30, 7),
        "background": (2, 8),
        "style": (2, 3),
        "strength": (2, 3),
    }
    assert {name: tuple(getattr(verdict, name).shape) for name in expected} == expected
    assert verdict.masks("cat").shape == (2, 64, 128) and verdict.colour("car").shape == (2, 7)
    for probabilities in (verdict.classes, verdict.colours.mT, verdict.background, verdict.style):
        torch.testing.assert_close(probabilities.sum(1), torch.ones_like(probabilities.sum(1)))
    assert all(len(names) == 2 for names in verdict.likeliest_objects(2))


def test_a_mask_is_foreground_times_class():
    verdict = random_judge()(torch.rand(1, 3, 32, 32))
    assert torch.equal(verdict.colour("lamp"), verdict.colours[:, 29])
    assert sum(verdict.masks(name) for name in OBJECTS) == pytest.approx(verdict.foreground, abs=1e-5)
    certain = replace(verdict, classes=torch.zeros(1, 30, 8, 8).index_fill(1, torch.tensor(3), 1.0))
    assert torch.equal(certain.masks("horse"), verdict.foreground) and certain.masks("cat").sum() == 0


def test_a_strength_lies_in_0_to_1_and_a_colour_is_read_where_the_object_is():
    judge, x = random_judge(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        judge.network.whole[2].bias[-3:] = torch.tensor([9.0, -9.0, 0.5])
        strength = judge(x).strength[0]
        assert strength[:2].tolist() == [1, 0]
        judge.network.thing.bias.fill_(-99.0)  # no foreground: no features under any mask, so all colours are alike
        colours = judge(x).colours[0]
    assert torch.allclose(colours, colours[:1].expand_as(colours), atol=1e-6)


def test_an_unknown_word_or_a_wrong_shape_is_named():
    judge = random_judge()
    with pytest.raises(ValueError, match="'dragon'"):
        judge(torch.zeros(1, 3, 32, 32)).masks("dragon")
    for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 40)):
        with pytest.raises(ValueError, match="b 3 H W"):
            judge(torch.zeros(shape))


def test_a_saved_judge_loads_as_it_was(tmp_path):
    judge = random_judge()
    judge.save(tmp_path)
    loaded, x = Judge.load(tmp_path), torch.rand(1, 3, 32, 32)
    assert loaded.config == SMALL_JUDGE
    torch.testing.assert_close(loaded(x).classes, judge(x).classes, atol=2e-3, rtol=0)  # float16


@pytest.mark.parametrize("change, named", [("missing", "stem.bias"), ("unknown", "extra"), ("shape", "stem.bias")])
def test_loading_weights_is_strict(tmp_path, change, named):
    random_judge().save(tmp_path)
    tensors = load_file(tmp_path / "judge.safetensors")
    if change == "unknown":
        tensors["extra"] = torch.zeros(1)
    else:
        bias = tensors.pop("stem.bias")
        tensors |= {"stem.bias": bias[1:].clone()} if change == "shape" else {}
    save_file(tensors, tmp_path / "judge.safetensors")
    with pytest.raises(ValueError, match=named) as error:
        Judge.load(tmp_path)
    assert "\n" not in str(error.value)


def test_loading_a_config_is_strict(tmp_path):
    with pytest.raises(ValueError, match="train the judge"):
        Judge.load(tmp_path)
    random_judge().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for values in (config | {"depth": [1]}, {"widths": config["widths"]}):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"missing or unknown: (depth|attributes)"):
            Judge.load(tmp_path)
