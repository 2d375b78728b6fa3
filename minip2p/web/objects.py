"""Which words of a prompt are offered as objects. No model is asked: the lists below are all that is known of words."""

from collections.abc import Sequence

from minip2p.p2p.places import FUNCTION_WORDS

ADJECTIVES = frozenset(  # colours and sizes: "an orange" may be an object, but not the orange of "an orange car"
    "beige big black blue bright brown dark gold golden gray green grey huge large light little orange pink purple red "
    "silver small tall tiny violet white yellow".split()
)
PICTURES = frozenset(  # what kind of picture it is, at the end or before "of" or another of these
    "art artwork charcoal drawing illustration image ink oil painting pencil photo photograph picture portrait render "
    "rendering sketch style watercolor watercolour".split()
)
NOUNS_IN_ING = frozenset(  # other words in -ing of five letters and more say what something does
    "building ceiling clothing drawing earring evening lightning morning painting railing sling spring string swing "
    "thing wedding".split()
)


def may_be_objects(words: Sequence[str]) -> list[bool]:
    """For each word of a prompt, in lower case, whether it is offered as an object.

    All words are, but function words, colours and sizes before a word, words in -ing, and the kind of picture ("a photo
    of"). So an object is rarely missing, and what is none may be offered.
    """
    return [may_be_object(word, following) for word, following in zip(words, [*words, None][1:], strict=True)]


def may_be_object(word: str, following: str | None) -> bool:
    """Whether a word is offered as an object. following: the next word of the prompt."""
    if word.endswith("ing") and len(word) > 4:
        is_noun = word in NOUNS_IN_ING | PICTURES
    elif word in ADJECTIVES:
        is_noun = following is None or following in FUNCTION_WORDS
    else:
        is_noun = word not in FUNCTION_WORDS
    return is_noun and not (word in PICTURES and (following in (None, "of") or following in PICTURES))
