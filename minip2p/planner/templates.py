"""Synthesised instructions, which the tagger is trained on: captions, and the templates of templates.txt.

In a template {slot} is filled, (a|b|) is a choice, and a word or a choice may have a mark: =D direction, =A amount, =N
new, =X old, =B beside. A word with another letter (=O, =T) has none of these. A line that begins with "!" is an order,
which may be wrapped in politeness. Every sixth line of an intent is held out of the training. The lines [before] and
[after] are chatter: nothing in them is marked. About 40 lines of each intent are by the author of the rules; language
models, which had not seen the instructions of the tests, wrote the others.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from minip2p.io.files import read_text
from minip2p.planner.lexicon import (
    ARTICLES,
    COLOURS,
    ON_PLACES,
    PLACES_ALONE,
    STUFF_OF,
    TIMES,
    WEATHER,
    article_for,
)
from minip2p.planner.tagger import INTENTS


def read_templates(file: Path) -> dict[str, tuple[str, ...]]:
    """The lines of each [intent] of a file. Lines that begin with "#" are comments."""
    templates: dict[str, tuple[str, ...]] = {}
    for line in map(str.strip, read_text(file).splitlines()):
        if line.startswith("["):
            intent = line.strip("[]")
            templates[intent] = ()
        elif line and not line.startswith("#"):
            templates[intent] += (line,)
    return templates


STUFFY = MappingProxyType(  # weather -> its adjective
    {noun: word for word, noun in reversed(tuple(STUFF_OF.items())) if word.endswith("y")}
)
SIZES = frozenset("big small tiny huge tall short".split())
HELD_OUT = 6  # each line of an intent whose number is the last of so many is held out
NEW_WORDS = 0.15  # the share of nouns and names that are invented
SYLLABLES = tuple(
    "ba be bo da do ka ki lo lu ma mi no nu pa pe ra ri sa so ta tu va zo fli gra kro sno tri bel dor".split()
)

ANIMALS = tuple(
    "cat dog rabbit horse cow pig sheep elephant tiger camel duck turtle penguin giraffe zebra lion fox wolf bear deer "
    "goat monkey mouse owl eagle parrot swan chicken frog snake lizard dolphin whale shark fish octopus crab bee "
    "butterfly kitten puppy pony hamster squirrel hedgehog raccoon panda koala kangaroo llama donkey bull flamingo "
    "peacock crow pigeon seagull dinosaur dragon unicorn".split()
)
THINGS = tuple(
    "car balloon apple umbrella chair tulip house bicycle cake backpack hat guitar truck lamp table sofa bed desk book "
    "cup mug bottle glass plate bowl vase clock mirror painting window door bridge tower castle church barn tent boat "
    "ship sailboat canoe train bus taxi tractor motorcycle scooter skateboard airplane helicopter rocket spaceship "
    "robot piano violin drum trumpet ball kite doll teddy ladder bench fence tree flower rose "
    "sunflower cactus mushroom "
    "pumpkin banana orange pear strawberry lemon bread pizza burger sandwich donut cookie coffee tea phone laptop "
    "camera television radio suitcase bag basket box crown scarf coat dress shirt shoe boot glove ring necklace sword "
    "shield flag lantern candle statue fountain windmill lighthouse snowman campfire rock waterfall "
    "sign parasol".split()
)
PEOPLE = tuple(
    "man woman boy girl child baby astronaut chef doctor farmer king queen knight pirate wizard witch clown dancer "
    "soldier sailor student teacher painter firefighter policeman cowboy ninja princess prince monk "
    "nurse tourist".split()
)
PLURALS = tuple("cats dogs birds horses people children flowers trees boats cars balloons apples houses sheep".split())
ADJECTIVES = tuple(
    "big small old young happy sad sleepy angry fluffy shiny rusty wooden golden metal broken tiny "
    "huge striped spotted "
    "furry fat thin tall short cute scary transparent glowing wet dirty clean modern ancient vintage colourful plain "
    "muscular elegant smiling crying stone plastic glass bald hairy wrinkled frozen burning muddy "
    "dusty open closed".split()
)
PLACES = tuple(
    "beach forest desert meadow street city village mountain lake river garden park kitchen bedroom "
    "office library museum "
    "classroom castle cave jungle field farm island harbour ocean pool swamp canyon glacier volcano rooftop balcony "
    "subway station airport stadium theatre market supermarket cafe restaurant bar church temple graveyard playground "
    "lawn hill valley waterfall snow grass sea moon space dungeon spaceship basement attic living-room factory".split()
)
PLACE_ADJECTIVES = tuple(
    "snowy foggy rainy sunny crowded empty busy quiet dark medieval tropical green old abandoned modern frozen dense "
    "wild misty".split()
)
MEASURES = tuple("cup bowl bunch pair glass pile group box basket plate herd flock bottle field piece".split())
SHADE_WORDS = tuple("bright dark light pale deep matte shiny neon pastel royal".split())
STYLE_ADJECTIVES = tuple(
    "soft bold flat detailed vintage rough classic colourful minimalist japanese renaissance loose quick old-fashioned "
    "stained glossy faded medieval digital abstract".split()
)
NAMES = tuple(
    "Paris London Tokyo Venice Rome Egypt Mars Iceland Hawaii Berlin Brazil Norway Mexico Kyoto Texas".split()
)
ARTISTS = tuple(
    "van Gogh|Monet|Picasso|Rembrandt|Klimt|Hokusai|Dali|Matisse|Warhol|Vermeer|Kandinsky|Escher|"
    "Turner|Miro|Munch".split("|")
)
STYLE_WORDS = tuple(
    "watercolor|oil painting|pencil sketch|sketch|cartoon|photo|photograph|charcoal drawing|drawing|"
    "pastel painting|comic|"
    "3d render|pixel mosaic|woodcut|linocut|etching|ink drawing|illustration|poster|painting|mosaic|black and white "
    "photograph|line drawing|collage|fresco|engraving|crayon drawing|watercolour|gouache painting|marble statue".split(
        "|"
    )
)
LOOKS = tuple(
    "anime|cartoon|pixel art|manga|comic book|art deco|cubist|impressionist|baroque|cyberpunk|"
    "steampunk|low poly|vintage|"
    "pop art|ukiyo-e|minimalist|surrealist|film noir|sepia|claymation|expressionist|gothic|retro|vaporwave".split("|")
)
POLITE = tuple(
    "please|can you|could you|would you|i want you to|can you please|i would like you to|could you "
    "please|let's|now|then|"
    "just|you should|try to|hey|ok|we should|i need you to".split("|")
)
AFTER = tuple("please|thanks|for me|now|in this picture|in the image|thank you|in the photo|if you can".split("|"))
HEDGES = tuple("i think|maybe|actually|hmm|ok|so|well|now|please|perhaps".split("|"))
CHATTER = 0.12  # the share of instructions with chatter before it; as many have some after it
SHOUTED = 0.02  # the share in capital letters
TYPO = 0.01  # the share of the words without a mark in which two letters have changed places
VERBS_OF_CAPTIONS = tuple(
    "sitting standing sleeping running walking lying waiting jumping eating flying floating parked resting".split()
)
DIRECTIONS = (
    "(left|right|up|down|leftwards|rightwards|upwards|downwards|to the left|to the right|to the top|"
    "to the bottom|higher|"
    "lower|further left|further right|up and to the left|down and right|to the right side|to the left side|higher up|"
    "lower down|further up|further down)=D"
)
AMOUNT = (
    "(a bit|a little|slightly|a lot|far|a little bit|a touch|somewhat|a tad|by a quarter of the picture|by half|way|"
    "just a bit|very far|gently|much)=A"
)
MUCH = "(much|a lot|a bit|a little|slightly|far|way|a little bit|significantly|a touch|even|considerably)=A"

TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(read_templates(Path(__file__).with_name("templates.txt")))


@dataclass(frozen=True)
class Example:
    """An instruction with its caption, its intent and a tag for each of its words."""

    words: tuple[str, ...]
    caption: str
    intent: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class CaptionSlots:
    """A caption and the words in it that an instruction may name; "" where it has none."""

    text: str
    old: str
    neighbour: str
    place: str
    stuff: str


def lines_of(intent: str, *, held_out: bool | None = None) -> list[str]:
    """The templates of an intent: all, those that are held out, or those that are not."""
    return [line for n, line in enumerate(TEMPLATES[intent]) if held_out in (None, n % HELD_OUT == HELD_OUT - 1)]


def make_example(rng: random.Random, *, held_out: bool = False, intent: str | None = None) -> Example:
    """A random instruction. intent: of INTENTS; None draws one, those that are refused seldom."""
    intent = intent or rng.choice([*INTENTS[:10] * 5, *INTENTS[10:] * 3])
    if intent == "several":
        return join_examples(rng, held_out)
    line = rng.choice(lines_of(intent, held_out=held_out))
    stuff = next(
        (name for name in ("weather", "stuffy") if f"{{{name}}}" in line), "any" if intent == "strength" else ""
    )
    caption = make_caption(rng, stuff=stuff, needs_place=intent == "place")
    marked = with_chatter(rng, fill(rng, line, caption), caption)
    polite, after = (POLITE, 0.15) if line.startswith("!") else (HEDGES, 0.05)
    if rng.random() < 2 * after:
        marked = [*((word, "none") for word in rng.choice(polite).split()), *marked]
    if rng.random() < after:
        marked = [*marked, *((word, "none") for word in rng.choice(AFTER).split())]
    words, tags = zip(*capitalized(rng, marked), strict=True)
    return Example(words, caption.text, intent, tags)


def with_chatter(rng: random.Random, marked: list[tuple[str, str]], caption: CaptionSlots) -> list[tuple[str, str]]:
    """The words, some with chatter before or after them, some with two letters in the wrong order."""
    if rng.random() < CHATTER:
        marked = [*fill(rng, rng.choice(TEMPLATES["before"]), caption), *marked]
    if rng.random() < CHATTER:
        marked = [*marked, *fill(rng, rng.choice(TEMPLATES["after"]), caption)]
    return [
        (mistyped(rng, word), tag) if tag == "none" and rng.random() < TYPO else (word, tag) for word, tag in marked
    ]


def mistyped(rng: random.Random, word: str) -> str:
    """A word in which two neighbouring letters have changed places."""
    n = rng.randrange(max(len(word) - 1, 1))
    return word[:n] + word[n : n + 2][::-1] + word[n + 2 :]


def capitalized(rng: random.Random, marked: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The words: a third of all instructions begin with a capital letter, a few have no others."""
    if rng.random() < SHOUTED:
        return [(word.upper(), tag) for word, tag in marked]
    if rng.random() < 1 / 3:
        return [(marked[0][0].capitalize(), marked[0][1]), *marked[1:]]
    return marked


def join_examples(rng: random.Random, held_out: bool) -> Example:
    """Two instructions in one, which is refused: nothing is marked."""
    pair = [make_example(rng, held_out=held_out, intent=rng.choice(INTENTS[:10])) for _ in range(2)]
    joint = rng.choice(
        ("and", "and", "and then", "then", "and also", "also", "", "plus", "and please", "oh and", "but")
    )
    words = (*pair[0].words, *joint.split(), *(word.lower() for word in pair[1].words))
    return Example(words, pair[0].caption, "several", ("none",) * len(words))


def make_caption(rng: random.Random, *, stuff: str, needs_place: bool) -> CaptionSlots:
    """A random caption: one thing or two, a place, weather, a style.

    stuff: "weather"; "stuffy" for weather that has an adjective; "any"; or "" if none is needed.
    """
    first, old = noun_phrase(rng)
    second, neighbour = noun_phrase(rng) if rng.random() < 0.4 else ("", "")
    verb = f" {rng.choice(VERBS_OF_CAPTIONS)}" if rng.random() < 0.2 else ""
    joints = "and|and|and|with|with|next to|in front of|near|holding|wearing|on|under|behind|of|watching"
    joint = f" {rng.choice(joints.split('|'))} "
    subject = first + (joint + second if second else verb)
    place, place_noun = place_phrase(rng) if needs_place or rng.random() < 0.7 else ("", "")
    kind, stuff = stuff, ""
    if kind or rng.random() < 0.15:
        stuff = rng.choice(tuple(WEATHER)) if kind != "any" or rng.random() < 0.7 else any_stuff(rng)
        stuff = rng.choice(tuple(STUFFY)) if kind == "stuffy" else stuff
    forms = (f"with {stuff}", f"in {stuff}", f"in the {stuff}", f"under {stuff}")
    mood = rng.choice((WEATHER.get(stuff, forms[0]), WEATHER.get(stuff, forms[0]), *forms)) if stuff else ""
    style = rng.choice(STYLE_WORDS) if rng.random() < 0.15 else ""
    text = f"{place}, {subject}" if place and rng.random() < 0.1 else f"{subject} {place}".strip()
    text = f"{text} {mood}".strip()
    if style:
        text = f"{article_for(style)} {style} of {text}" if rng.random() < 0.7 else f"{text}, {style}"
    if second and rng.random() < 0.5:
        old, neighbour = neighbour, old
    return CaptionSlots(text, old, neighbour or old, place_noun or "background", stuff)


def noun_phrase(rng: random.Random) -> tuple[str, str]:
    """A noun phrase with its article, and how an instruction names it: with its adjective or without."""
    noun = any_noun(rng)
    adjective = rng.choice((rng.choice(ADJECTIVES), rng.choice(sorted(COLOURS)))) if rng.random() < 0.35 else ""
    words = f"{adjective} {noun}".strip()
    if noun in PLURALS:
        article = rng.choice(("", "two ", "three ", "some "))
    else:
        article = f"{rng.choice((article_for(words), article_for(words), 'the', 'my'))} "
    return article + words, words if rng.random() < 0.4 else noun


def any_noun(rng: random.Random) -> str:
    """A noun, or two that are one; some are invented."""
    if rng.random() < NEW_WORDS:
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))
    if rng.random() < 0.06:
        return rng.choice(PLURALS)
    noun = rng.choice(rng.choice((ANIMALS, ANIMALS, THINGS, THINGS, PEOPLE)))
    return f"{rng.choice(THINGS)} {noun}" if rng.random() < 0.06 else noun


def any_stuff(rng: random.Random) -> str:
    """Something that there is more or less of: several things, or an invented word."""
    return rng.choice(PLURALS) if rng.random() < 0.6 else "".join(rng.choice(SYLLABLES) for _ in range(2))


def place_phrase(rng: random.Random) -> tuple[str, str]:
    """A phrase of place, and its noun."""
    if rng.random() < 0.12:
        name = rng.choice(NAMES) if rng.random() < 0.7 else any_noun(rng).capitalize()
        return f"in {name}", name
    noun = rng.choice(PLACES) if rng.random() < 0.9 else any_noun(rng)
    usual = "on" if noun in ON_PLACES else "in"
    preposition = rng.choice((usual, usual, usual, "at", "near", "under", "by"))
    if rng.random() < 0.25:
        noun = f"{rng.choice(rng.choice((PLACE_ADJECTIVES, PLACE_ADJECTIVES, PLACES)))} {noun}"
    return f"{preposition} {rng.choice((article_for(noun), 'the', 'the', ''))} {noun}".replace("  ", " "), noun


def style_phrase(rng: random.Random) -> str:
    """A kind of picture, without an article."""
    style = rng.choice(STYLE_WORDS)
    return f"{rng.choice(STYLE_ADJECTIVES)} {style}" if rng.random() < 0.25 else style


def attribute_phrase(rng: random.Random, among: Sequence[str]) -> str:
    """A colour or another attribute among some, which may have a shade."""
    word = rng.choice(among)
    return f"{rng.choice(SHADE_WORDS)} {word}" if word in COLOURS and rng.random() < 0.2 else word


def new_phrase(rng: random.Random) -> str:
    """Something new, with its article."""
    words = noun = any_noun(rng)
    form = rng.random()
    if form < 0.3:
        words = f"{attribute_phrase(rng, rng.choice((ADJECTIVES, sorted(COLOURS))))} {noun}"
    elif form < 0.36:
        words = f"{rng.choice(ADJECTIVES)} {rng.choice(sorted(COLOURS))} {noun}"
    elif form < 0.44:
        words = f"{rng.choice(MEASURES)} of {noun}"
    elif form < 0.5:
        words = f"{noun} {rng.choice(('with', 'in'))} {article_for(other := any_noun(rng))} {other}"
    if noun in PLURALS or rng.random() < 0.06:
        return f"{rng.choice(('two', 'three', 'some', 'a few'))} {words}"
    return f"{article_for(words)} {words}"


def slot_value(rng: random.Random, slot: str, caption: CaptionSlots) -> tuple[str, str]:
    """The text of a slot, and its tag."""
    place, place_noun = place_phrase(rng)
    looks = rng.choice(LOOKS)
    style = style_phrase(rng)
    artist = rng.choice(ARTISTS) if rng.random() < 0.8 else any_noun(rng).capitalize()
    time = rng.choice(tuple(TIMES))
    new = new_phrase(rng)
    attribute = rng.choice((rng.choice(ADJECTIVES), rng.choice(sorted(COLOURS))))
    while attribute in SIZES:  # "make it huge" resizes
        attribute = rng.choice(ADJECTIVES)
    words, tag = {
        "old": (caption.old, "old"),
        "olds": (caption.old if caption.old.endswith("s") else f"{caption.old}s", "old"),
        "old0": (rng.choice((caption.old, any_noun(rng))), "none"),
        "olds0": (f"{caption.old}s", "none"),
        "beside": (caption.neighbour, "beside"),
        "oldplace": (caption.place, "old"),
        "stuff": (caption.stuff or "fog", "old"),
        "weather": (caption.stuff or "fog", "old"),
        "stuffy": (STUFFY.get(caption.stuff, "foggy"), "old"),
        "possessive": (f"{caption.old}'s", "old"),
        "new": (new, "new"),
        "plain": (rng.choice(ANIMALS + THINGS + PEOPLE), "new"),
        "newbare": (new.split(" ", 1)[1] if new.split()[0] in ARTICLES else new, "new"),
        "plural": (rng.choice(PLURALS), "new"),
        "newstuff": (rng.choice(tuple(WEATHER)), "new"),
        "newadj": (rng.choice(("foggy", "snowy", "rainy", "stormy", "windy", "cloudy", "sunny", "misty")), "new"),
        "newverb": (rng.choice(("snow", "rain", "hail", "storm")), "new"),
        "adj": (attribute_phrase(rng, (attribute,)), "new"),
        "colour": (attribute_phrase(rng, sorted(COLOURS)), "new"),
        "material": (rng.choice(("wood", "stone", "glass", "gold", "ice", "paper", "metal", "chocolate")), "new"),
        "place": (rng.choice(sorted(PLACES_ALONE)) if rng.random() < 0.04 else place, "new"),
        "toplace": (f"{rng.choice(('to', 'into', 'to', 'onto'))} {rng.choice(('the', 'a'))} {place_noun}", "new"),
        "placenp": (f"{rng.choice((article_for(place_noun), 'the', ''))} {place_noun}".strip(), "new"),
        "time": (time, "new"),
        "atime": (TIMES[time], "new"),
        "style": (f"{article_for(style)} {style}" if rng.random() < 0.7 else style, "new"),
        "stylebare": (style, "new"),
        "manner": (f"{rng.choice(('in the style of', 'in the style of', 'like'))} {artist}", "new"),
        "look": (looks, "new"),
        "nonsense": (
            " ".join("".join(rng.choice(SYLLABLES) for _ in range(2)) for _ in range(rng.randint(1, 3))),
            "none",
        ),
    }[slot]
    return words, tag


MARKS: Mapping[str, str] = MappingProxyType({"D": "direction", "A": "amount", "N": "new", "X": "old", "B": "beside"})
MACROS: Mapping[str, str] = MappingProxyType({"~DIRECTIONS": DIRECTIONS, "~AMOUNT": AMOUNT, "~MUCH": MUCH})
PIECE = re.compile(r"\(([^()]*)\)(?:=(\w))?|(\S+?)(?:=(\w))?(?=\s|$)")


def fill(rng: random.Random, line: str, caption: CaptionSlots) -> list[tuple[str, str]]:
    """The words of a template with their tags."""
    for macro, text in MACROS.items():
        line = line.replace(macro, text)
    line = re.sub(r"\(\(([^()]*)\)(=\w)\|\)", r"(\1)\2", line.lstrip("! "))
    marked: list[tuple[str, str]] = []
    for match in PIECE.finditer(line):
        text = rng.choice(match[1].split("|")) if match[3] is None else match[3]
        mark = match[2] or match[4] or ""
        for word in text.split():
            slot = re.fullmatch(r"\{(\w+)\}", word)
            value, tag = slot_value(rng, slot[1], caption) if slot else (word, "none")
            tag = MARKS.get(mark, tag) if mark else tag
            marked += [(part, tag) for part in value.split()]
    return [(word, tag) for word, tag in marked if any(character.isalnum() for character in word)]
