"""From the words that the tagger has marked to a plan: the rules that find words in the caption and write the target.

They only copy: each word of a target is the caption's or the instruction's, but for articles, for the prepositions of
`minip2p.planner.lexicon` and for "and", "with" and "of".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from minip2p.planner.lexicon import (
    ARTICLES,
    COLOURS,
    DETERMINERS,
    DOWNWARDS,
    EDIT_VERBS,
    EXCLUSIVE,
    GONE,
    ING_NOUNS,
    LEFTWARDS,
    LESS,
    MANNERS,
    MORE,
    NEGATIONS,
    NONE,
    NUMBERS,
    ON_PLACES,
    PLACE_PREPOSITIONS,
    PLACES_ALONE,
    PREPOSITIONS,
    PRONOUNS,
    RIGHTWARDS,
    SHADES,
    SLIGHTLY,
    STOPS,
    STRONGLY,
    STUFF_OF,
    STYLES,
    TIMES,
    TURNS,
    UPWARDS,
    WEATHER,
    article_for,
    is_form_of,
    stem,
)
from minip2p.planner.plan import Plan
from minip2p.planner.tagger import Reading
from minip2p.text.prompt import normalize_text, word_spans

SHIFTS = (0.125, 0.25, 0.4)  # shares of the picture: slightly, without an amount, strongly
GROWTHS = (1.2, 1.5, 2.0)  # factors of the size; smaller is 1 / factor
WEIGHTS = (1.5, 2.0, 3.0)  # of a word; less is 1 / weight
AS_LARGE = frozenset("as big large tall the its same size".split())  # as in "half as large", "half its size"
FIGURES = r"x?(\d+(?:\.\d+)?)x?"  # "20", "1.5", "2x"
ADJECTIVES = frozenset().union(*EXCLUSIVE)
COMPANIONS = tuple(tuple(words.split()) for words in ("with", "wearing", "holding", "beside", "near", "next to"))
DUPLICATE_SHIFT = 0.3  # to the right, or in the direction that is named


@dataclass(frozen=True)
class Caption:
    """A caption with its words. low: as they are compared. spans: where they are in the text."""

    text: str
    spans: tuple[tuple[int, int], ...]
    low: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> "Caption":
        spans = tuple(word_spans(text))
        return cls(text, spans, tuple(normalize_text(text[a:b]) for a, b in spans))

    def replaced(self, start: int, stop: int, new: Sequence[str]) -> str:
        """The text with words start … stop − 1 replaced. Words are inserted before a word if start is stop."""
        if start == stop:
            a = b = self.spans[start][0] if start < len(self.spans) else len(self.text)
        else:
            a, b = self.spans[start][0], self.spans[stop - 1][1]
        before, after = self.text[:a], self.text[b:]
        middle = " ".join(new)
        before += " " if before and not before[-1].isspace() else ""
        middle += " " if middle and after[:1].isalnum() else ""
        return correct_articles(tidy(before + middle + after), start)

    def find(self, words: Sequence[str]) -> tuple[int, int]:
        """[start, stop) of the words, or of words of the same stems. Raises ValueError."""
        low = [normalize_text(word) for word in words]
        for form in (lambda word: word, stem):
            wanted, text = [form(word) for word in low], [form(word) for word in self.low]
            for n in range(len(text) - len(wanted) + 1):
                if text[n : n + len(wanted)] == wanted:
                    return n, n + len(wanted)
        raise NotInCaption(f"{' '.join(words)!r} is not in the caption {self.text!r}: use its words")

    def subject(self) -> tuple[int, int]:
        """[start, stop) of the first noun that is neither a style's nor a place's. Raises ValueError."""
        start = self.after_style()
        if start == len(self.low):
            raise ValueError(f"the caption {self.text!r} names no object")
        if self.low[start] in PLACE_PREPOSITIONS and "," in self.text:
            start = next((n for n, (a, _) in enumerate(self.spans) if a > self.text.index(",")), start)
        while start + 1 < len(self.low) and self.low[start] in DETERMINERS:
            start += 1
        stop = start + 1
        while stop < len(self.low) and not self.ends_before(stop):
            stop += 1
        return stop - 1, stop

    def ends_before(self, n: int) -> bool:
        """Whether a noun phrase ends before word n: at a preposition, a verb, an article or punctuation."""
        is_stop = self.low[n] in STOPS | DETERMINERS and not joins_colours(self.low, n)
        return is_stop or self.is_verb(n) or not self.is_joined(n)

    def is_joined(self, n: int) -> bool:
        """Whether nothing but space is between word n and the word before it."""
        return self.text[self.spans[n - 1][1] : self.spans[n][0]].isspace()

    def is_verb(self, n: int) -> bool:
        """Whether word n says what something does: "sleeping", but neither "a building" nor "a swimming pool"."""
        word, after = self.low[n], self.low[n + 1 : n + 2]
        is_noun = word in ING_NOUNS and (not after or after[0] not in DETERMINERS)  # "building a house"
        is_named = n > 0 and self.low[n - 1] in DETERMINERS
        return word.endswith("ing") and len(word) > 5 and not is_noun and not is_named

    def phrase_start(self, noun: int) -> int:
        """Where the noun phrase of a noun begins, at its article if it has one."""
        start = noun
        while start and not self.ends_before(start) and noun - start < 4:
            start -= 1
        while start and self.low[start - 1] in DETERMINERS:  # "the two cats"
            start -= 1
        is_before = start < noun and (self.low[start] in STOPS or self.is_verb(start))
        return start + is_before  # "with tourists" begins at the noun

    def after_style(self) -> int:
        """The word after "a watercolor of"; 0 where the caption does not begin so."""
        if "of" in self.low[:6]:
            n = self.low.index("of")
            if n and self.low[n - 1] in STYLES:
                return n + 1
        return 0

    def end(self) -> int:
        """The word at which a style at the end begins, as ", watercolor"; else the number of words."""
        comma = self.text.rfind(",")
        tail = [n for n, (a, _) in enumerate(self.spans) if a > comma >= 0]
        begins_with_place = self.low[:1] and self.low[0] in PLACE_PREPOSITIONS and self.text.count(",") == 1
        if not tail or begins_with_place:
            return len(self.low)
        is_style = self.low[-1] in STYLES | MANNERS or self.low[tail[0] : tail[0] + 3] == ("in", "the", "style")
        return tail[0] if is_style else len(self.low)

    def places(self) -> list[tuple[int, int]]:
        """[start, stop) of each phrase of place, time and weather, with its preposition."""
        phrases = []
        for n, word in enumerate(self.low[: self.end()]):
            if word in PLACE_PREPOSITIONS - {"next", "beside"} and n + 1 < len(self.low):
                stop = n + 1
                while (
                    stop < self.end()
                    and (stop == n + 1 or self.low[stop] not in STOPS)
                    and (stop == n + 1 or self.text[self.spans[stop - 1][1] : self.spans[stop][0]].isspace())
                ):
                    stop += 1
                phrases.append((n, stop))
        return phrases

    def insert_after(self, stop: int, words: Sequence[str]) -> str:
        """The text with words after the first `stop` words, before a comma that may follow."""
        place = self.spans[stop - 1][1]
        return tidy(f"{self.text[:place]} {' '.join(words)}{self.text[place:]}")

    def insert_at_end(self, words: Sequence[str]) -> str:
        """The text with words at its end, before a style."""
        end = self.end()
        if end == len(self.low):
            return tidy(f"{self.text.rstrip(' .')} {' '.join(words)}")
        comma = self.text.rfind(",")
        return tidy(f"{self.text[:comma]} {' '.join(words)}{self.text[comma:]}")


class NotInCaption(ValueError):
    """Words of an instruction that the caption does not have."""


def write_plan(reading: Reading, caption: str) -> Plan:
    """The plan of a reading for a caption. Raises ValueError, one line, for words that are missing."""
    if reading.intent == "several":
        raise ValueError("the instruction asks for several changes: make them one after the other")
    if reading.intent == "other":
        raise ValueError("this is not understood as an edit: say it as 'make the cat a tiger' or 'more fog'")
    refuse_negation(reading)
    text = Caption.read(caption)
    plan = RULES[reading.intent](reading, text)
    return plan.check(caption)


# --- an intent each


def plan_swap(reading: Reading, caption: Caption) -> Plan:
    start, stop = place_of(reading, "old", caption)
    new = needed(reading, "new", "what comes instead")
    first = caption.phrase_start(start)
    if normalize_text(new[0]) in ARTICLES | {"the", "this", "that"}:
        there = caption.low[first] if caption.low[first] in DETERMINERS else ""
        if there and there not in ARTICLES | {"the", "my", "your", "his", "her", "its", "our", "their"}:
            start = first  # "two cats" become "a tiger"
        elif there:
            new = new[1:]
            if not DETERMINERS.isdisjoint(caption.low[first + 1 : start]):
                start = first + 1  # "the two cats" become "the tiger"
    elif normalize_text(new[0]) in DETERMINERS or (caption.low[first] in ARTICLES and is_plural(new[-1])):
        start = first
    if not new:
        raise ValueError("the instruction does not say what comes instead: say it as 'make the cat a tiger'")
    if len(new) > 1 and start > first and caption.low[first] in DETERMINERS and normalize_text(new[0]) not in ARTICLES:
        start = first + 1  # "a red car" becomes "a blue truck", not "a red blue truck"
    if (
        stop < len(caption.low)
        and not caption.ends_before(stop)
        and stem(caption.low[stop]) == stem(normalize_text(new[-1]))
    ):
        stop += 1  # "an old truck instead of the new one"
    return Plan(target=caption.replaced(start, stop, new), kind="swap")


def plan_attribute(reading: Reading, caption: Caption) -> Plan:
    _, stop = place_of(reading, "old", caption)
    new = [
        word
        for word in needed(reading, "new", "what the new look is")
        if normalize_text(word) not in DETERMINERS | {"in"}
    ]
    if not new:
        raise ValueError("the new look is not named: say it as 'make the car blue'")
    noun, low = stop - 1, normalize_text(new[-1])
    group = next((group for group in EXCLUSIVE if low in group), frozenset())
    modifiers = range(caption.phrase_start(noun), noun + 1)
    old = next((n for n in modifiers if caption.low[n] in group), None)
    blend = None if caption.low[noun] in group else (caption.low[noun], caption.low[noun])
    if old is not None:
        start = old - (caption.low[old] in COLOURS and old > modifiers.start and caption.low[old - 1] in SHADES)
        end = old + 1
        while end + 1 < noun and joins_colours(caption.low, end):
            end += 2  # "a black and white cat"
        return Plan(target=caption.replaced(start, end, new), kind="attribute", local_blend=blend)
    compound = noun - (noun > modifiers.start and caption.low[noun - 1].endswith("ing"))  # "a washing machine"
    position = next((n for n in modifiers if caption.low[n] in COLOURS and n < noun), compound)
    return Plan(target=caption.replaced(position, position, new), kind="attribute", local_blend=blend)


def plan_add(reading: Reading, caption: Caption) -> Plan:
    new = list(needed(reading, "new", "what is added"))
    stuff = stuff_phrase(new)
    if stuff:
        return Plan(target=caption.insert_at_end(stuff), kind="add")
    if normalize_text(new[0]) not in DETERMINERS and not is_plural(new[-1]):
        new = [article_for(new[0]), *new]
    if "beside" in reading.tags:
        stop = place_of(reading, "beside", caption)[1]
        return Plan(target=caption.insert_after(stop, [relation(reading), *new]), kind="add")
    stop, end = caption.subject()[1], caption.end()
    place = next((start for start, _ in caption.places() if start >= max(stop, 1)), end)
    words = ["and", *new]
    target = caption.insert_at_end(words) if place == end else caption.replaced(place, place, words)
    return Plan(target=target, kind="add")


def plan_remove(reading: Reading, caption: Caption) -> Plan:
    start, stop = place_of(reading, "old", caption)
    words = " ".join(caption.low[start:stop])
    if stem(caption.low[stop - 1]) in {stem(word) for word in WEATHER}:
        return Plan(target=caption.text, kind="strength", reweight={words: 0.0})
    return Plan(target=caption_without(caption, start, stop), kind="remove", remove=(words,))


def caption_without(caption: Caption, start: int, stop: int) -> str:
    """The caption without the object of words start … stop − 1, where it names another one: "a cat and a dog".

    Elsewhere it is the caption itself, as of "a cat on the beach": what is left would name nothing. So it is where more
    is said of the object, which would then be said of another: "a cat and a dog with a hat".
    """
    low, text, first = caption.low, caption.text, caption.phrase_start(start)
    before, after = (" ".join(low[n : n + 1]) if n >= 0 else "" for n in (first - 1, stop))
    is_complete = stop == len(low) or caption.ends_before(stop)
    is_said_of = after in STOPS - PLACE_PREPOSITIONS - {"and"} or (after and caption.is_verb(stop))
    is_its = not {"his", "her", "its", "their", "it", "him", "them"}.isdisjoint(low[stop + 1 : stop + 4])
    if not is_complete or is_said_of or is_its:
        return text

    def is_item(n: int) -> bool:
        """Whether a noun phrase of a list begins with word n."""
        return n < caption.end() and (low[n] in DETERMINERS or (is_plural(low[n]) and low[n] not in STOPS))

    def without(begin: int) -> str:
        """The text without words begin … stop − 1, and without what separates them from the word before."""
        return tidy(text[: caption.spans[begin - 1][1]] + text[caption.spans[stop - 1][1] :])

    is_after_place = low[0] in PLACE_PREPOSITIONS and first > 0 and text.find(",") == caption.spans[first - 1][1]
    is_first = is_after_place or first in (0, caption.after_style())
    if is_first:
        other = stop + (after == "and")
        is_list = after == "and" or text[caption.spans[stop - 1][1] :].startswith(",")
        goes_on = is_list and is_item(other)
        return text[: caption.spans[first][0]] + text[caption.spans[other][0] :] if goes_on else text
    if before == "and":
        has_noun = first > 1 and low[first - 2] not in ADJECTIVES
        return without(first - 1) if has_noun and is_item(first) else text
    if not caption.is_joined(first):
        return without(first) if is_item(first) else text
    subject = caption.subject()[1]
    names_another = low[subject - 1] not in STYLES and (low[0] not in PLACE_PREPOSITIONS or "," in text)
    for words in COMPANIONS if names_another and after != "and" else ():
        begin = first - len(words)
        if subject <= begin and low[begin:first] == words:
            return without(begin)
    return text


def plan_restyle(reading: Reading, caption: Caption) -> Plan:
    new = list(needed(reading, "new", "what the style is"))
    start, end = caption.after_style(), caption.end()
    if start == len(caption.low):
        raise ValueError(f"the caption {caption.text!r} names no object")
    bare = caption.text[caption.spans[start][0] :] if start else caption.text
    if end < len(caption.low):
        bare = bare[: bare.rfind(",")]
    low = [normalize_text(word) for word in new]
    while low and low[0] in ("as", "into", "to"):
        new, low = new[1:], low[1:]
    if len(low) == 1 and low[0].removesuffix("ify") in STYLES:  # "cartoonify"
        new, low = [low[0].removesuffix("ify")], [low[0].removesuffix("ify")]
    by = low.index("by") if "by" in low else len(low)  # "a watercolor by Monet"
    is_place_first = caption.low[start : start + 1] and caption.low[start] in PLACE_PREPOSITIONS
    if by and low[by - 1] in STYLES and not is_place_first:
        words = new[low[0] in ARTICLES | {"the"} : by]
        artist = f", {' '.join(new[by:])}" if new[by:] else ""
        bare = bare.rstrip(" .") if artist else bare
        return Plan(target=f"{article_for(words[0])} {' '.join(words)} of {bare}{artist}", kind="restyle")
    if low[:1] == ["like"]:
        new = ["in", "the", "style", "of", *new[1:]]
    elif low and low[0] in ARTICLES | {"the"}:
        new = new[1:]
    elif low and new[-1].istitle() and not set(low) & (STYLES | MANNERS | {"by", "in"}):
        new = ["in", "the", "style", "of", *new]  # "as Monet would paint it"
    if not new:
        raise ValueError("the style is not named: say it as 'make it a watercolor'")
    return Plan(target=f"{bare.rstrip(' .')}, {' '.join(new)}", kind="restyle")


def plan_place(reading: Reading, caption: Caption) -> Plan:
    phrase = place_words(needed(reading, "new", "what the new place is"))
    is_time = normalize_text(phrase[-1]) in TIMES
    places = [(a, b) for a, b in caption.places() if not is_weather(caption.low[a:b])]
    times = [(a, b) for a, b in places if caption.low[b - 1] in TIMES]
    settings = [span for span in places if span not in times]
    old = times if is_time else settings
    if old:
        return Plan(target=caption.replaced(*old[-1 if is_time else 0], phrase), kind="place")
    weather = [a for a, b in caption.places() if is_weather(caption.low[a:b]) or (a, b) in times]
    if not is_time and weather and weather[0]:
        return Plan(target=caption.replaced(weather[0], weather[0], phrase), kind="place")
    return Plan(target=caption.insert_at_end(phrase), kind="place")


def plan_strength(reading: Reading, caption: Caption) -> Plan:
    old = needed(reading, "old", "of what there is more or less")
    direction, amount = directions_of(reading), lower(reading, "amount")
    has_more_or_less = any(is_form_of(word, MORE | LESS) for word in direction)
    goes = any(is_form_of(word, GONE) for word in direction)
    is_gone = bool(set(direction) & NONE) or (goes and not has_more_or_less)
    sign = -1 if is_gone else sign_of(reading, "more" if not {"half", "third", "quarter"} & set(amount) else "less")
    try:
        start, stop = place_of(reading, "old", caption)
    except NotInCaption:
        if sign <= 0:
            raise
        return Plan(target=caption.insert_at_end(stuff_phrase(old) or ["with", *old]), kind="add")
    number = number_of(reading)
    times = next((NUMBERS[word] for word in amount + direction if NUMBERS.get(word, 0) > 1), 0.0)
    weight = scaled(WEIGHTS, sign, amount) if not times else times**sign
    weight = weight if number is None else stated_factor(number, sign)
    weight = 0.0 if is_gone else weight
    return Plan(target=caption.text, kind="strength", reweight={" ".join(caption.low[start:stop]): weight})


def plan_move(reading: Reading, caption: Caption) -> Plan:
    start, stop = place_of(reading, "old", caption)
    x, y = shift_of(reading)
    if not (x or y):
        raise ValueError("the direction is not named: say it as 'move the cat to the left'")
    return Plan(target=caption.text, kind="move", move={" ".join(caption.low[start:stop]): (x, y)})


def plan_resize(reading: Reading, caption: Caption) -> Plan:
    start, stop = place_of(reading, "old", caption)
    factor = round(factor_of(reading), 3)
    return Plan(target=caption.text, kind="resize", resize={" ".join(caption.low[start:stop]): factor})


def plan_duplicate(reading: Reading, caption: Caption) -> Plan:
    start, stop = place_of(reading, "old", caption)
    counts = [float(match[1]) for word in reading.words if (match := re.fullmatch(FIGURES, normalize_text(word)))]
    if max(counts, default=0) > 2:
        raise ValueError("a plan makes one copy of a thing: say it as 'another cat on the left'")
    x, y = shift_of(reading, DUPLICATE_SHIFT)
    shift = (x, y) if x or y else (DUPLICATE_SHIFT, 0.0)
    return Plan(target=caption.text, kind="duplicate", duplicate={" ".join(caption.low[start:stop]): shift})


# --- parts of them


def needed(reading: Reading, tag: str, what: str) -> tuple[str, ...]:
    """The words with a tag. Raises ValueError where there are none."""
    tags = reading.tags
    gaps = [n for n in range(1, len(tags) - 1) if tags[n - 1] == tags[n + 1] == tag]
    joins = [n for n in gaps if tags[n] == "none" and normalize_text(reading.words[n]) in ("and", "of")]
    words = tuple(word for n, word in enumerate(reading.words) if tags[n] == tag or n in joins)  # "black and white"
    if tag == "new":
        refuse_unmarked_rest(reading)
    if tag == "new" and reading.tags[0] == "new" and words[0].istitle():  # only because the sentence begins with it
        words = (words[0].lower(), *words[1:])
    if not words:
        raise ValueError(f"the instruction does not say {what}: say it as 'make the cat a tiger' or 'more fog'")
    return words


def lower(reading: Reading, tag: str) -> list[str]:
    return [normalize_text(word) for word in reading.marked(tag)]


def place_of(reading: Reading, tag: str, caption: Caption) -> tuple[int, int]:
    """Where the caption has the words with a tag; its subject where none is marked, or a pronoun stands for it.

    Words that are marked in several places may name it several times: "the cat is boring, I want a dog instead of the
    cat". Then the longest run that the caption has counts. "The cat's" is the cat. Raises ValueError for words that the
    caption does not have, and for several things.
    """
    runs: list[list[str]] = []
    low = reading.low
    tags = list(reading.tags)
    for n in range(1, len(tags) - 1):
        if joins_colours(low, n) and tags[n - 1] == tags[n + 1]:
            tags[n] = tags[n - 1]
    for word, before, this in zip(reading.words, ("none", *tags), tags, strict=False):
        if this == tag:
            runs += [[]] if before != tag else []
            bare = re.sub("'(s|d|re|ve|ll)$", "", normalize_text(word))
            if bare not in PRONOUNS | DETERMINERS and not re.fullmatch(FIGURES, bare):
                runs[-1].append(re.sub("['’]s?$", "", word, flags=re.IGNORECASE))
    words = [word for run in runs for word in run]
    if tag == "old":
        refuse_second_thing(reading, caption)
    if not words:
        return caption.subject()
    runs = [run for run in runs if run]
    places = []
    for run in sorted(runs, key=len, reverse=True) if len(runs) > 1 else ():
        with suppress(NotInCaption):
            places.append(caption.find(run))
    if len({stem(caption.low[stop - 1]) for _, stop in places}) > 1:
        raise ValueError("the instruction names several things: change one after the other")
    return places[0] if places else caption.find(words)


def joins_colours(low: Sequence[str], n: int) -> bool:
    """Whether word n is an "and" between two colours, as in "black and white"."""
    return 0 < n < len(low) - 1 and low[n] == "and" and {low[n - 1], low[n + 1]} <= COLOURS


def stuff_phrase(new: Sequence[str]) -> list[str]:
    """How a caption says that there is fog: "in the fog", "in the thick fog". Empty for what is no weather."""
    low = [normalize_text(word) for word in new]
    if "of" in low and set(low[: low.index("of")]) <= DETERMINERS | STRONGLY | SLIGHTLY:
        low = low[low.index("of") + 1 :]  # "tons of fog"
    words = [word for word in low if word not in DETERMINERS | STRONGLY | SLIGHTLY]
    noun = STUFF_OF.get(words[-1], words[-1]) if words else ""
    if noun not in WEATHER or len(words) > 2:
        return []
    phrase = WEATHER[noun].split()
    place = len(phrase) - (2 if "falling" in phrase else 1)  # "in light falling snow"
    return [*phrase[:place], *(word for word in words[:-1] if word not in phrase), *phrase[place:]]


def relation(reading: Reading) -> str:
    """ "with" for what something has or wears, "and" for what is elsewhere."""
    first = reading.tags.index("beside")
    before = [normalize_text(word) for word in reading.words[:first]]
    while before and before[-1] in DETERMINERS:
        before.pop()
    is_side = not (LEFTWARDS | RIGHTWARDS | {"side"}).isdisjoint(before[-2:])  # "on the left of"
    if before[-1:] == ["of"] and {"on", "onto", "atop"} & set(before[-4:]) and not is_side:  # "on the head of"
        return "with"
    apart = before[-2:] == ["next", "to"] or (
        before and before[-1] in PREPOSITIONS - {"on", "onto", "to", "for", "around"}
    )
    return "and" if apart else "with"


def place_words(new: Sequence[str]) -> list[str]:
    """A phrase of place or time, with its preposition and its article."""
    words, low = list(new), [normalize_text(word) for word in new]
    if len(low) == 1 and low[0] in PLACES_ALONE:
        return words
    preposition = ""
    if low[0] in PREPOSITIONS | {"to", "into", "onto"} and len(low) > 1:
        preposition, words, low = low[0], words[1:], low[1:]
    if len(low) <= 2 and low[-1] in TIMES and low[0] not in DETERMINERS and preposition in ("", "to", "into"):
        *before, time = TIMES[low[-1]].split()
        return [*before, *words[:-1], time]  # "in the early morning"
    if preposition in ("", "to", "into", "onto", "with", "for", "from", "as", "of"):
        preposition = "on" if low[-1] in ON_PLACES or preposition == "onto" else "in"
    is_bare = preposition in ("under", "at") or low[0] in DETERMINERS or words[-1][:1].isupper() or is_plural(low[-1])
    return [preposition, *([] if is_bare else ["the"]), *words]


def is_weather(low: Sequence[str]) -> bool:
    """Whether a phrase is of weather: "in the fog", "in falling snow", but not "in the snow", which is a place."""
    noun = low[-1]
    return noun in WEATHER and not (noun == "snow" and len(low) < 4 and "falling" not in low)


def is_plural(word: str) -> bool:
    low = normalize_text(word)
    return (low.endswith("s") and not low.endswith(("ss", "us"))) or low in ("people", "children", "sheep", "mice")


def sign_of(reading: Reading, of_amount: str) -> int:
    """1 for more and bigger, −1 for less and smaller: of the last word of direction that says it.

    "Too", "not" and "less" turn the next such word: "less dense", "too much". "Too" turns no comparative, since that
    says what is wanted: "too windy, less wind". "Not … enough" turns nothing. Where no direction is marked, an amount
    has the one of the word `of_amount`; without an amount, words without a mark count. Raises ValueError, one line,
    where nothing says it.
    """
    direction = directions_of(reading)
    if not direction:
        direction = [of_amount] if "amount" in reading.tags else lower(reading, "none")
    if set(direction) & NONE:
        return -1
    sign = unturned = 0
    turns: list[str] = []
    for word in direction:
        if word == "enough" and turns == [] and unturned:
            sign = unturned  # "not big enough"
        elif is_form_of(word, MORE | LESS):
            is_comparative = word in ("more", "less", "fewer") or word.endswith("er")
            unturned = (1 if is_form_of(word, MORE) else -1) if word != "enough" else -1
            sign = unturned * (-1) ** sum(turn != "too" or not is_comparative for turn in turns)
            turns = [word] if word in ("less", "fewer") else []
        elif word in TURNS:
            turns.append(word)
    if sign:
        return sign
    if turns:
        return -1
    if any(word in STUFF_OF and word.endswith("ier") for word in lower(reading, "old")):
        return 1  # "foggier"
    raise ValueError("nothing says whether it becomes more or less: say it as 'more fog' or 'make the cat bigger'")


def directions_of(reading: Reading) -> list[str]:
    """The words of direction, and two that have no mark: a "not" up to three words before the first, and a word for
    less after the last one if this is "less", as in "less small"."""
    low = reading.low
    places = [n for n, tag in enumerate(reading.tags) if tag == "direction"]
    if not places:
        return []
    before = [n for n in range(max(places[0] - 3, 0), places[0]) if low[n] in TURNS - {"too"} | NEGATIONS]
    after = [n + 1 for n in places[-1:] if low[n] == "less" and low[n + 1 : n + 2] and low[n + 1] in LESS]
    return [*("not" for _ in before), *(low[n] for n in places + after)]


def scaled(values: tuple[float, float, float], sign: int, amount: Sequence[str]) -> float:
    """The factor of an amount: values for slightly, without an amount, strongly; their inverse for less."""
    value = values[degree(amount)]
    return value if sign > 0 else round(1 / value, 3)


class Number(NamedTuple):
    """A number of an instruction. unit: "percent", "times" or "". is_total: it says what becomes of the thing, as in
    "to 50 percent" and "50 percent of its size"; else by how much it changes."""

    value: float
    unit: str
    is_total: bool


def number_of(reading: Reading) -> Number | None:
    """The number in figures that an instruction has, if any. Raises ValueError, one line, for several."""
    low = reading.low
    figures = [(n, match[1]) for n, word in enumerate(low) if (match := re.fullmatch(FIGURES, word))]
    if not figures:
        return None
    if len(figures) > 1:
        raise ValueError("the instruction has several numbers: say one, as in '20 percent bigger'")
    ((n, text),) = figures
    value, after = float(text), low[n + 1 : n + 2]
    is_times = "times" in after or "x" in low[n]
    unit = "times" if is_times else "percent" if "percent" in after or value >= 10 else ""
    following = low[n + 2 : n + 3] if after in (["times"], ["percent"]) else after
    is_total = "to" in low[max(n - 2, 0) : n] or following in (["of"], ["as"])
    if not value:
        raise ValueError("0 is no amount: say one, as in '20 percent bigger' or 'no fog'")
    return Number(value, unit, is_total)


def stated_factor(number: Number, sign: int) -> float:
    """The factor that a number in figures says. sign: 1 for more and bigger, −1 for less and smaller; 0 for neither."""
    value = number.value / (100 if number.unit == "percent" else 1)
    if number.is_total and number.unit == "percent":
        return value
    if number.unit == "percent" or (value < 1 and not number.is_total and number.unit != "times" and sign):
        return 1 + sign * value  # "20 percent bigger", "smaller by 0.2"
    return value**sign if value > 1 and sign else value


def factor_of(reading: Reading) -> float:
    """The factor of the size that the direction, the amount and a number say. Raises ValueError, one line."""
    direction, amount = lower(reading, "direction"), lower(reading, "amount")
    refuse_pixels(reading)
    number = number_of(reading)
    is_factor = number is not None and (number.unit != "percent" or number.is_total)
    if is_factor and set(direction) <= {"scale", "resize", "size"}:
        sign = 0  # "scale the cat by 2", "make it 50 percent of its size"
    else:
        sign = sign_of(reading, "smaller" if "half" in amount else "bigger")
    word = next((NUMBERS[word] for word in direction + amount if word in NUMBERS), 0.0)
    factor = scaled(GROWTHS, sign, amount)
    if number is not None:
        factor = stated_factor(number, sign)
    elif "halve" in direction + amount:
        factor = 0.5
    elif 0 < word < 1 and set(direction) <= AS_LARGE:
        factor = word  # "half as big"
    elif 0 < word < 1:
        factor = 1 + sign * (1 - word if is_to(reading) and sign < 0 else word)  # "to a third", "by a third"
    elif word:
        factor = word**sign
    if factor == 1:
        raise ValueError("the instruction does not say by how much: say it as 'make the cat 20 percent bigger'")
    return factor


def degree(amount: Sequence[str]) -> int:
    """0 for slightly, 2 for strongly, else 1, as for "quite a bit"."""
    if "quite" in amount:
        return 1
    return 0 if set(amount) & SLIGHTLY else 2 if set(amount) & STRONGLY else 1


def shift_of(reading: Reading, usual: float = SHIFTS[1]) -> tuple[float, float]:
    """The shift that the direction and the amount say, in shares of the picture. Raises ValueError for pixels.

    usual: the shift where no amount is named.
    """
    amount = lower(reading, "amount")
    refuse_pixels(reading)
    number = number_of(reading) if reading.intent == "move" else None
    if number is not None and number.unit != "percent" and number.value > 1:
        raise ValueError("a shift is a share of the picture: say it as '20 percent' or 'a quarter of the picture'")
    size = next((NUMBERS[word] for word in amount if NUMBERS.get(word, 1) < 1), None)
    size = size if number is None else number.value / (100 if number.unit == "percent" else 1)
    size = size or (SHIFTS[0], usual, SHIFTS[2])[degree(amount)]
    words = set(lower(reading, "direction"))
    x, y = (bool(words & more) - bool(words & less) for more, less in ((RIGHTWARDS, LEFTWARDS), (DOWNWARDS, UPWARDS)))
    turned = -1 if is_too(reading) else 1
    return turned * x * size, turned * y * size


def is_too(reading: Reading) -> bool:
    """Whether a direction is where something is too far: "too far left", "too high"."""
    first = reading.tags.index("direction") if "direction" in reading.tags else 0
    near = [normalize_text(word) for word in reading.words[max(first - 4, 0) : first + 1]]
    sides = LEFTWARDS | RIGHTWARDS | UPWARDS | DOWNWARDS
    return "too" in near and not sides & set(near[near.index("too") : -1])


def refuse_negation(reading: Reading) -> None:
    """Raises ValueError for what is not to happen, and for all but something: "don't remove the dog"."""
    low = reading.low
    for n, word in enumerate(low):
        not_to = word in ("don't", "dont", "never", "mustn't") or (word == "not" and n and low[n - 1] in ("do", "must"))
        if not_to and low[n + 1 : n + 2] and low[n + 1] in EDIT_VERBS and low[n + 2 : n + 3] != ["anything"]:
            raise ValueError("the instruction says what is not to happen: say what is to change")
    is_all = {"everything", "all", "everyone", "only"} & set(low) and {"but", "except", "only", "apart"} & set(low)
    if is_all and reading.intent == "remove":
        raise ValueError("all but something cannot be removed: name what is to go, as in 'remove the cat'")


def refuse_second_thing(reading: Reading, caption: Caption) -> None:
    """Raises ValueError where "and" joins two things of the caption that are not marked as one."""
    low, things = reading.low, {stem(word) for word in caption.low}
    marked = {stem(word) for word in lower(reading, "old")}

    def is_thing(n: int) -> bool:
        return stem(low[n]) in things and low[n] not in STOPS | DETERMINERS | PRONOUNS | COLOURS

    for n in range(1, len(low)):
        after = next((m for m in range(n + 1, min(n + 4, len(low))) if is_thing(m)), None)  # "and also the dog"
        follows = after == n + 1 or (after == n + 2 and low[n + 1] in DETERMINERS)
        if low[n] != "and" or after is None or not (follows or is_thing(n - 1)):
            continue
        tags = {reading.tags[after]} | ({reading.tags[n - 1]} if is_thing(n - 1) else set())
        is_other = stem(low[after]) not in marked or is_thing(n - 1)
        if tags != {"old"} and is_other and not tags & {"new", "beside"}:
            raise ValueError("the instruction names several things: change one after the other")


def refuse_unmarked_rest(reading: Reading) -> None:
    """Raises ValueError where "and" joins what is new with something that is not marked: "add a hat and a scarf"."""
    low = reading.low
    if "new" not in reading.tags:
        return
    first = reading.tags.index("new")
    first -= first > 0 and low[first - 1] in DETERMINERS
    is_second = first > 1 and low[first - 1] == "and" and not ARTICLES.isdisjoint(low[max(first - 4, 0) : first - 2])
    n = len(low) - reading.tags[::-1].index("new")
    rest = low[n + 1 :]
    if low[n : n + 1] == ["and"] and rest and rest[0] not in EDIT_VERBS | PRONOUNS | {"please", "thanks", "then"}:
        is_thing = rest[0] in ARTICLES | {"some", "another"} or len(rest) == 1 or rest[1] in PREPOSITIONS
        is_second = is_second or (is_thing and reading.tags[n + 1] == "none")
    if is_second:
        raise ValueError("the instruction names several things: add or change one after the other")


def refuse_pixels(reading: Reading) -> None:
    if any(re.fullmatch(r"\d*(px|pixels?)", normalize_text(word)) for word in reading.words):
        raise ValueError("a planner does not know the picture's size: say an amount as 'a quarter of the picture'")


def is_to(reading: Reading) -> bool:
    """Whether an amount is what becomes of it, as in "to a third"; else it is the difference."""
    first = reading.tags.index("amount") if "amount" in reading.tags else 0
    near = reading.words[max(first - 1, 0) : first + 2]
    return "to" in map(normalize_text, near)


def tidy(text: str) -> str:
    """The text without double spaces and without spaces before punctuation."""
    return re.sub(r"\s+([,.;:!?)”])", r"\1", re.sub(r"\s+", " ", text)).strip()


def correct_articles(text: str, place: int) -> str:
    """The text with "a" or "an" as the next word wants it, where word `place` or the word before is an article."""
    for n in (place - 1, place):
        spans = word_spans(text)
        if 0 <= n < len(spans) - 1 and (old := text[slice(*spans[n])]).casefold() in ARTICLES:
            article = article_for(text[slice(*spans[n + 1])])
            article = article.capitalize() if old[0].isupper() else article
            text = text[: spans[n][0]] + article + text[spans[n][1] :]
    return text


RULES: Mapping[str, Callable[[Reading, Caption], Plan]] = MappingProxyType(
    {
        "swap": plan_swap,
        "attribute": plan_attribute,
        "add": plan_add,
        "remove": plan_remove,
        "restyle": plan_restyle,
        "place": plan_place,
        "strength": plan_strength,
        "move": plan_move,
        "resize": plan_resize,
        "duplicate": plan_duplicate,
    }
)
