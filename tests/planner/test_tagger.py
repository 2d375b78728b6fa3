"""The tagger, its training and its exam; and that even random weights give valid plans only."""

import json
import random
import time

import pytest
import torch
from paths import ROOT

import minip2p
from minip2p.planner import exam
from minip2p.planner.plan import Plan, read_plan
from minip2p.planner.rules import write_plan
from minip2p.planner.tagger import (
    FILE,
    INTENTS,
    TAGS,
    Reading,
    Tagger,
    TaggerNetwork,
    place_words,
    spell_numbers,
    text_words,
    word_buckets,
)
from minip2p.planner.templates import HELD_OUT, TEMPLATES, lines_of, make_example, mistyped, read_templates
from minip2p.planner.train import train

DATA = ROOT / "tests" / "data"
CASES = json.loads((DATA / "instructions.json").read_text(encoding="utf-8"))
INDEPENDENT = json.loads((DATA / "instructions-independent.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tagger():
    return Tagger.load()


def test_examples_have_a_tag_for_each_word_and_depend_on_the_seed_alone():
    first, second = ([make_example(random.Random(seed)) for seed in range(300)] for _ in range(2))
    assert first == second and {example.intent for example in first} == set(INTENTS)
    for example in first:
        assert len(example.words) == len(example.tags) and set(example.tags) <= set(TAGS)
        assert not any(set("{}|=~!()") & set(word) for word in example.words), example.words


def test_there_are_many_templates_for_each_intent_that_is_not_refused():
    assert all(len(lines_of(intent)) >= 200 == len(set(lines_of(intent)[:200])) for intent in INTENTS[:10])
    for intent in TEMPLATES:
        seen, unseen = (lines_of(intent, held_out=held_out) for held_out in (False, True))
        assert len(unseen) == len(lines_of(intent)) // HELD_OUT and sorted(seen + unseen) == sorted(lines_of(intent))


def test_the_rules_read_what_the_templates_mark():
    """A plan for nearly all of them: an invented word may be one that the rules refuse."""
    rng = random.Random(2)
    refused = 0
    for _ in range(400):
        example = make_example(rng, intent=rng.choice(INTENTS[:10]))
        try:
            plan = write_plan(Reading(example.words, example.intent, example.tags), example.caption)
            assert read_plan(plan.to_json(), example.caption) == plan
        except ValueError:
            refused += 1
    assert refused < 20


def test_random_weights_give_valid_plans_or_one_line():
    torch.manual_seed(0)
    rng, plans = random.Random(3), 0
    network = TaggerNetwork()
    for intent in range(10):  # such that each intent is the likeliest
        with torch.no_grad():
            network.intent.bias.copy_(100.0 * torch.eye(len(INTENTS))[intent])
            network.tag.weight.normal_()
        tagger = Tagger(network)
        for _ in range(10):
            example = make_example(rng)
            try:
                plan = write_plan(tagger(" ".join(example.words), example.caption), example.caption)
            except ValueError as error:
                assert "\n" not in str(error)
            else:
                plans += 1
                assert read_plan(plan.to_json(), example.caption) == plan
    assert plans > 10


def test_training_learns_and_is_the_same_for_the_same_seed(tmp_path, capsys):
    torch.manual_seed(1)
    a, b = (train(4, batch=4, seed=5) for _ in range(2))
    assert "step 4 of 4: loss" in capsys.readouterr().out
    assert all(torch.equal(x, y) for x, y in zip(a.network.parameters(), b.network.parameters(), strict=True))
    a.save(tmp_path)
    halves = {name: t.half().float() for name, t in a.network.state_dict().items()}
    loaded = Tagger.load(tmp_path).network.state_dict()
    assert loaded.keys() == halves.keys() and all(torch.equal(loaded[name], halves[name]) for name in halves)


def test_files_that_are_wrong_are_one_line(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no such file: train the tagger with python -m minip2p\.planner\.train"
    ):
        Tagger.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Tagger.load(tmp_path)


def test_words_of_a_text_and_lines_of_a_file(tmp_path):
    assert text_words("it’s → 🙂 fog") == ("it’s", "fog")
    assert text_words("1.5 times. 2.5x, 3 . 4, v.5") == ("1.5", "times", "2.5x", "3", "4", "v", "5")
    (tmp_path / "templates.txt").write_text(" [a]\n# c\n\n x y \n[b]\nz\n")
    assert read_templates(tmp_path / "templates.txt") == {"a": ("x y",), "b": ("z",)}
    assert {mistyped(random.Random(n), "abc") for n in range(9)} == {"bac", "acb"}


def test_features_of_words():
    assert place_words("a cat with a dog on the big beach with fog".split()) == {"on", "the", "big", "beach"}
    assert word_buckets("cat") == word_buckets("cat") != word_buckets("car")
    assert len(word_buckets("cat")) == 1 + 3 + 2 + 1  # itself; <ca cat at>; <cat cat>; <cat>


def test_the_exam_compares_effects():
    plan = Plan(target="a cat", kind="move", move={"cat": (-0.2, 0.1)})
    assert exam.is_right(plan, {"kind": "move", "expects": "move=cat:left"})
    assert not exam.is_right(plan, {"kind": "move", "expects": "move=cat:right"})
    assert not exam.is_right(plan, {"kind": None}) and exam.is_right(None, {"kind": None})
    swap = Plan(target="a dog.", kind="swap")
    assert exam.is_right(swap, {"kind": "swap", "targets": ["a cat", "a dog"]})
    assert not exam.is_right(swap, {"kind": "swap", "targets": ["a cat"]})


def test_the_shipped_tagger(tagger):
    """On instructions of docs/planner.md, and on those that it cannot follow."""
    assert minip2p.plan("make the cat a tiger", "a cat on the beach", by=tagger).target == "a tiger on the beach"
    assert minip2p.plan("more fog", "a cat in the fog", by=tagger).reweight == {"fog": 2}
    assert minip2p.plan("move the cat to the left", "a cat", by=tagger).move == {"cat": (-0.25, 0)}
    assert (
        minip2p.plan("replace the zorb with a glimp", "a zorb on the beach", by=tagger).target == "a glimp on the beach"
    )
    for instruction in ("make the cat a tiger and add fog", "hello there", "remove the dragon"):
        with pytest.raises(ValueError):
            minip2p.plan(instruction, "a cat on the beach", by=tagger)


def test_the_shipped_tagger_is_small_and_as_good_as_its_page_says(tagger):
    assert (ROOT / "weights" / "planner" / FILE).stat().st_size < 2.5e6
    assert exam.share_exact(tagger, 300, held_out=False) > 0.9
    for cases, least in ((CASES, 0.9), (INDEPENDENT, 0.6)):
        plans = [exam.plan_or_none(tagger, case["instruction"], case["caption"]) for case in cases]
        assert sum(exam.is_right(plan, case) for plan, case in zip(plans, cases, strict=True)) / len(cases) > least
    begin = time.process_time()
    tagger("make the cat a tiger", "a cat on the beach")
    assert time.process_time() - begin < 0.2


def test_the_arguments_of_plan(tagger):
    with pytest.raises(ValueError, match="by_model: 'x' is a model of a server"):
        minip2p.plan("more fog", "a cat", by_model="x")
    with pytest.raises(ValueError, match="by is None, a Tagger, a LanguageModel, its folder, or the address"):
        minip2p.plan("more fog", "a cat", by=3)
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        minip2p.plan("more fog", "a cat", by="http://localhost:1/v1", timeout=0)
    with pytest.raises(ValueError, match="has 61 words, and 60 is the most"):
        minip2p.plan("fog " * 61, "a cat", by=tagger)
    with pytest.raises(ValueError, match="is not understood for certain"):
        minip2p.plan("fog", "a cat", by=Tagger(TaggerNetwork()))


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("5% bigger, 50 % more", "5 percent bigger, 50 percent more"),
        ("1/2, 1/3 and 1/4", "half, third and quarter"),
        ("2/3 or 3/4", "67 percent or 75 percent"),
        ("24/7 and 1/2/2026", "24/7 and 1/2/2026"),
        ("7,5% and 1,000", "7.5 percent and 1,000"),
        (".5 times, v.5", "0.5 times, v.5"),
        ("2× and 2x, ×3, 2xl", "2 times and 2 times, x3, 2xl"),
        ("cat, dog.", "cat, dog."),
    ],
)
def test_numbers_are_spelled(text, spelled):
    assert spell_numbers(text) == spelled


def test_the_tagger_reads_numbers_with_their_signs():
    tagger = Tagger.load()
    factors = {"make the dog 5% bigger": 1.05, "make the cat .5 times as large": 0.5, "shrink the cat to 1/2": 0.5}
    for instruction, factor in factors.items():
        (resized,) = minip2p.plan(instruction, "a cat and a dog", by=tagger).resize.values()
        assert resized == factor, instruction
