"""The settings of pairs: the published presets, thresholds, and values that are wrong."""

import pytest

from minip2p.pairs.settings import CLIP_LEAST, PRESETS, SCORES, PairSettings, best, passes

NOTHING = dict.fromkeys(SCORES)


def test_the_preset_of_instruct_pix2pix_is_its_published_code():
    """dataset_creation/generate_img_dataset.py of timothybrooks/instruct-pix2pix: --n-samples, --steps, --min-p2p and
    --max-p2p, --min-cfg and --max-cfg, --max-out-samples and the three thresholds of CLIP."""
    preset = PRESETS["instruct-pix2pix"]
    assert (preset.samples, preset.steps, preset.self_replace, preset.guidance, preset.keep) == (
        *(100, 100),
        *((0.1, 0.9), (7.5, 15.0)),
        4,
    )
    assert preset.cross_replace == (0, 0) and preset.masks == ("none",)
    assert (
        preset.thresholds(has_clip=True)
        == CLIP_LEAST
        == {
            "clip_image": 0.7,
            "clip_source": 0.2,
            "clip_target": 0.2,
            "clip_direction": 0.2,
        }
    )


def test_a_kind_can_have_other_settings():
    settings = PairSettings(least={"psnr": 20.0}, kinds={"style": {"masks": ("box",), "least": {"psnr": None}}})
    assert settings.of("style").masks == ("box",) and settings.of("object").masks == ("none",)
    assert settings.of("object").thresholds(has_clip=False) == {"fits_source": 0, "fits_target": 0, "psnr": 20}
    assert settings.of("style").thresholds(has_clip=False) == {"fits_source": 0, "fits_target": 0}
    assert PairSettings(least={"psnr": 9.0}).thresholds(has_clip=True) == {**CLIP_LEAST, "psnr": 9}


def test_scores_pass_at_their_thresholds_and_what_was_not_measured_does_not_count():
    least = {"fits_target": 0.5, "psnr": 20.0}
    assert passes(NOTHING | {"fits_target": 0.5, "psnr": 20.0}, least)
    assert passes(NOTHING | {"fits_target": 0.5}, least)
    assert not passes(NOTHING | {"fits_target": 0.49, "psnr": 99.0}, least)


def test_the_best_is_first():
    """By CLIP's direction where there is one; else by the sum of the model's scores; equal ones stay in order."""
    by_model = [NOTHING | {"fits_source": a, "fits_target": b} for a, b in ((0.1, 0.1), (0.0, 0.5), (0.2, 0.0))]
    assert best(by_model) == [1, 0, 2]
    assert best([row | {"clip_direction": n} for n, row in enumerate(by_model)]) == [2, 1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 0}, "samples must be a whole number from 1 on"),
        ({"keep": 1.5}, "keep must be a whole number from 1 on"),
        ({"guidance": (2.0, 1.0)}, "guidance is a range"),
        ({"cross_replace": (0.0, 1.5)}, "cross_replace is a range of numbers from 0 on up to 1"),
        ({"self_replace": 0.5}, "self_replace is a range"),
        ({"masks": ()}, "masks are none, tight, grown, box, at least one of them"),
        ({"masks": ("x",)}, "not 'x'"),
        ({"masks": ("box", "box")}, "each at most once"),
        ({"grow": 9}, "grow must lie between 0 and 4"),
        ({"mask_threshold": 2}, "mask_threshold must lie between"),
        ({"least": {"judge": 1}}, "least has no score 'judge'"),
        ({"least": {"psnr": float("nan")}}, "least must be a finite number for psnr"),
        ({"kinds": {"style": {"samples": 3}}}, "kinds of edits have no samples"),
        ({"kinds": {"style": {"keep": 0}}}, "keep must be a whole number"),
    ],
)
def test_wrong_values_are_one_line(values, message):
    with pytest.raises(ValueError) as error:
        PairSettings(**values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_score_that_is_not_measured_has_no_threshold():
    with pytest.raises(ValueError, match="least has clip_image, which needs a CLIP"):
        PairSettings(least={"clip_image": 0.5}).thresholds(has_clip=False)
    with pytest.raises(ValueError, match="least has fits_source, which is measured without a CLIP"):
        PairSettings(least={"fits_source": 0.5}).thresholds(has_clip=True)
