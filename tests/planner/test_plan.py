"""Plans: their JSON, their schema, their validation, and the edit that they are."""

import json

import pytest
import torch

from minip2p import Plan
from minip2p.p2p.options import EditOptions
from minip2p.planner.plan import KINDS, TAU, plan_schema, read_plan

CAPTION = "a cat on the beach in the fog"
PLANS = (
    Plan(target="a tiger on the beach in the fog", kind="swap", local_blend=("cat", "tiger")),
    Plan(target="a red cat on the beach in the fog", kind="attribute", cross_replace=0.5, self_replace=(0.1, 0.6)),
    Plan(target=CAPTION, kind="strength", reweight={"fog": 2.0, "beach": -1}),
    Plan(target=CAPTION, kind="move", move={"cat": (-0.25, 0.5)}, resize={"cat": 1.5}),
    Plan(target=CAPTION, kind="duplicate", duplicate={"cat": (0.3, 0)}),
    Plan(target=CAPTION, kind="remove", remove=("cat", "the#2")),
)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.kind)
def test_json_goes_both_ways(plan):
    assert read_plan(plan.to_json(), CAPTION) == plan


def test_tau_is_the_kinds_unless_it_is_given():
    for kind, settings in KINDS.items():
        need = {"reweight": {"cat": 2}, "remove": ["cat"], "move": {"cat": (0.1, 0)}}
        need |= {"resize": {"cat": 2}, "duplicate": {"cat": (0.1, 0)}}
        plan = Plan(target="a cat", kind=kind, **{name: need[name] for name in [settings.needs] if name})
        assert (plan.cross_replace, plan.self_replace) == settings[:2]
    assert (PLANS[1].cross_replace, PLANS[1].self_replace) == (0.5, (0.1, 0.6))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": ""}, "the target of a plan is a text with words"),
        ({"target": "a\ncat"}, "line break"),
        ({"target": "cat " * 300}, "has 1200 characters, and 1000 is the most"),
        ({"kind": "explode"}, "the kind of a plan is swap, attribute"),
        ({"kind": []}, "the kind of a plan"),
        ({"cross_replace": 1.5}, "the steps of cross_replace are shares"),
        ({"self_replace": "much"}, "the steps of self_replace are shares"),
        ({"reweight": {"tiger": 1e9}}, "reweight: the weight of 'tiger' is a number from -10 to 10"),
        ({"reweight": ["tiger"]}, "reweight takes words with their numbers"),
        ({"move": {"cat": (2, 0)}}, "move: 'cat' goes by"),
        ({"move": {"cat": 0.5}}, "move: 'cat' goes by"),
        ({"duplicate": {"cat": (0, float("nan"))}}, "duplicate: 'cat' goes by"),
        ({"resize": {"cat": 0}}, "resize: the factor of 'cat' is a number from 0.1 to 10, not 0"),
        ({"remove": "cat"}, "remove is a list of words, not 'cat'"),
        ({"local_blend": ("cat",)}, "local_blend is two words"),
        ({"kind": "move"}, "a plan of kind move needs move, which is empty"),
    ],
)
def test_wrong_values_have_one_line_each(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        Plan(**{"target": "a tiger on the beach", "kind": "swap"} | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"move": {"dog": (0.1, 0)}}, "move: 'dog' is not in the caption 'a cat on the beach in the fog'"),
        ({"remove": ["the#3"]}, "remove: 'the#3' is not in the caption"),
        ({"remove": [3]}, "remove: 3 is not in the caption"),
        ({"local_blend": ("dog", "tiger")}, "local_blend: 'dog' is not in the caption"),
        ({"local_blend": ("cat", "dog")}, "local_blend: 'dog' is not in the target 'a tiger on the beach'"),
        ({"reweight": {"fog": 2}}, "reweight: 'fog' is not in the target"),
        ({"target": "A cat on the beach in the fog!"}, "the plan changes nothing: its target is the caption"),
    ],
)
def test_words_that_are_not_there_have_one_line_each(fields, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"target": "a tiger on the beach", "kind": "swap"} | fields).check(CAPTION)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a JSON object but list"),
        ('{"kind": "swap"}', "target is missing"),
        ('{"target": "a tiger", "kind": "swap", "mood": 1}', "'mood' is not a field of a plan"),
        ('{"target": 3, "kind": "swap"}', "the target of a plan is a text with words, not 3"),
        ('{"target": "a tiger", "kind": {}}', "the kind of a plan"),
        ('{"target": "a tiger", "kind": "swap", "move": {"cat": 1}}', "move: is not a list but"),
        ('{"target": "a tiger", "kind": "swap", "move": [{"word": "cat", "x": 1}]}', "move: an entry has word, x, y"),
        ('{"target": "a tiger", "kind": "swap", "move": [{"word": "cat", "x": "1", "y": 0}]}', "'1', which is not a n"),
        ('{"target": "a tiger", "kind": "swap", "resize": [{"word": [], "factor": 1}]}', "not a word"),
        ('{"target": "a tiger", "kind": "swap", "remove": "cat"}', "remove: is not a list"),
        ('{"target": "a tiger", "kind": "swap", "local_blend": "cat"}', "local_blend: an entry has source, target"),
        ('{"target": "a cat", "kind": "strength", "reweight": [{"word": "cat", "weight": 1e999}]}', "the weight of"),
    ],
)
def test_wrong_json_has_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_plan(text, CAPTION, location="plan.json")
    assert str(error.value).startswith("plan.json: ") and "\n" not in str(error.value)


def test_a_text_may_be_kept_from_saying_tau():
    text = PLANS[0].to_json()
    with pytest.raises(ValueError, match="'cross_replace' is not a field of a plan"):
        read_plan(text, CAPTION, without=TAU)


def test_the_schema_enumerates_the_captions_words():
    schema = plan_schema("A cat, a dog; the CAT")
    text = json.dumps(schema)
    assert schema["properties"]["remove"]["items"] == {"type": "string", "enum": ["a", "cat", "dog", "the"]}
    assert not any(name in text for name in TAU)
    assert set(schema["required"]) == set(schema["properties"]) == set(Plan.__dataclass_fields__) - set(TAU)
    stack = [schema]
    while stack:  # OpenAI's strict mode: every property is required and no other is allowed
        node = stack.pop()
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert node["required"] == list(node["properties"]) and node["additionalProperties"] is False
            stack += node.values()
        elif isinstance(node, list):
            stack += node


def test_a_plan_is_the_edit_of_its_options(small_model):
    run = small_model.generate("a cat on the beach", seed=1, steps=3)
    plan = Plan(target="a tiger on the beach", kind="swap", move={"cat": (0.25, -0.125)})
    options = {"cross_replace": 0.8, "self_replace": 0.8, "move": {"cat": (16, -8)}}
    assert torch.equal(small_model.edit(run, plan).latents, small_model.edit(run, plan.target, **options).latents)
    for name, value in (("cross_replace", 0.5), ("remove", "cat")):
        with pytest.raises(ValueError, match=f"{name}: the plan says this already"):
            small_model.edit(run, plan, **{name: value})
    with pytest.raises(ValueError, match="move: 'cat' is not in the caption 'a dog'"):
        small_model.edit("a dog", plan, steps=2)


def test_the_options_of_a_plan():
    options = PLANS[0].apply_to(EditOptions(explicit=True), (64, 128))
    assert options.local_blend.source == ("cat",) and options.local_blend.target == ("tiger",) and options.explicit
    assert PLANS[3].apply_to(EditOptions(), (64, 128)).move == {"cat": (-32, 32)}
