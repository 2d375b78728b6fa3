"""The settings of a PNG, as fields of the page."""

from minip2p.sampling import metadata
from minip2p.web.png_settings import parse_parameters


def test_the_settings_that_a_run_writes_are_read_again(model):
    run = model.generate('a "cat", on: the beach', seed=3, steps=1, guidance_scale=2.5, negative_prompt="fog, snow")
    text = metadata.parameters(
        run, Cross="0.6", Self="0.2", Reweight="a=2.0, cat=-0.5", Blend="cat:dog", Threshold="0.4"
    )
    settings = parse_parameters(text)
    assert settings["prompt"] == 'a "cat", on: the beach' and settings["negative"] == "fog, snow"
    assert (settings["seed"], settings["steps"], settings["guidance"]) == (3, 1, 2.5)
    assert (settings["cross"], settings["self"], settings["threshold"]) == (0.6, 0.2, 0.4)
    assert settings["weights"] == {"a": 2.0, "cat": -0.5}
    assert settings["blend"] == {"source": ["cat"], "target": ["dog"]}
    assert settings["method"] is None and settings["source"] is None and not settings["paste"]
    assert settings["text"] == text


def test_what_cannot_be_read_is_missing():
    settings = parse_parameters('a cat\nSteps: many, Seed: 1, Cross: 0.8:0.9, Blend: cat, Source: "a, b", Reweight: x')
    assert settings["steps"] is None and settings["seed"] == 1 and settings["cross"] is None
    assert settings["blend"] == {"source": ["cat"], "target": ["cat"]} and settings["source"] == "a, b"
    assert settings["weights"] is None
    assert parse_parameters("only a prompt")["prompt"] == "only a prompt"
