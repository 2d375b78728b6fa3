"""The words that the tagger's features and the rules know. Everything else is copied from the instruction."""

import re
from collections.abc import Mapping
from types import MappingProxyType


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = words("a an")
DETERMINERS = ARTICLES | words(
    "the this that these those some any another my your his her its our their two three four five six several many few "
    "one no"
)
PRONOUNS = words("it he she him her them they this that everything all whole picture image scene photo")
PREPOSITIONS = words(
    "in on at under over by near beside behind above below among against around inside outside into onto across "
    "through along between beneath underneath during before after next from to toward towards with "
    "without of for as like"
)
PLACE_PREPOSITIONS = PREPOSITIONS - words("with without of for as like to from into onto before after")
ING_NOUNS = words(  # which are no verbs
    "awning building carving ceiling clothing crossing drawing duckling dumpling earring engraving etching evening "
    "fencing flooring gosling herring icing lighting lightning morning painting parking pudding railing sapling "
    "scaffolding seedling sibling spring starling stocking string viking wedding wiring"
)
STOPS = PREPOSITIONS | words("and or but while who that which is are wearing holding playing reading eating riding")
COLOURS = words(
    "red orange yellow green blue purple pink black white brown grey gray golden gold silver turquoise violet beige "
    "crimson scarlet teal navy maroon cyan magenta lavender"
)
SHADES = words("dark light bright pale deep")  # before a colour, which they belong to
EXCLUSIVE = (  # of each group, a thing has one
    COLOURS,
    words("old young older younger elderly new modern ancient aged"),
    words("wooden wood metal metallic stone glass plastic iron steel golden marble brick paper concrete"),
    words("happy sad angry cheerful gloomy smiling crying"),
    words("big small large tiny huge little giant tall short"),
    words("wet dry clean dirty"),
    words("sunny rainy cloudy foggy snowy stormy"),
    words("open closed"),
)
STYLES = words(
    "photo photograph picture sketch drawing painting watercolor watercolour render rendering illustration cartoon "
    "etching engraving print mosaic portrait poster comic collage fresco woodcut linocut doodle caricature lithograph "
    "tapestry sculpture statue manga mural diagram window lineart polaroid painting"
)
MANNERS = words("style look aesthetic art")
# What has no outline of its own, and how a caption says that it is there.
WEATHER: Mapping[str, str] = MappingProxyType(
    {
        "fog": "in the fog",
        "mist": "in the mist",
        "haze": "in the haze",
        "snow": "in falling snow",
        "rain": "in the rain",
        "flowers": "with flowers",
        "smoke": "in smoke",
        "wind": "in the wind",
        "lightning": "under lightning",
        "clouds": "under clouds",
        "sunlight": "in sunlight",
        "sunshine": "in the sunshine",
        "moonlight": "in the moonlight",
        "dust": "in the dust",
        "hail": "in the hail",
        "storm": "in a storm",
        "thunderstorm": "in a thunderstorm",
        "leaves": "among leaves",
        "bubbles": "among bubbles",
        "sparks": "among sparks",
        "confetti": "among confetti",
    }
)
STUFF_OF: Mapping[str, str] = MappingProxyType(  # other forms of these words
    {
        "foggy": "fog",
        "foggier": "fog",
        "misty": "mist",
        "mistier": "mist",
        "hazy": "haze",
        "snowy": "snow",
        "snowier": "snow",
        "snowing": "snow",
        "snowfall": "snow",
        "snowflakes": "snow",
        "rainy": "rain",
        "rainier": "rain",
        "raining": "rain",
        "smoky": "smoke",
        "smokier": "smoke",
        "windy": "wind",
        "windier": "wind",
        "cloudy": "clouds",
        "cloudier": "clouds",
        "cloud": "clouds",
        "sunny": "sunshine",
        "sunnier": "sunshine",
        "stormy": "storm",
        "stormier": "storm",
        "dusty": "dust",
        "flowery": "flowers",
        "flower": "flowers",
        "blossoms": "flowers",
    }
)
TIMES: Mapping[str, str] = MappingProxyType(  # of the day and of the year
    {
        "night": "at night",
        "midnight": "at midnight",
        "sunset": "at sunset",
        "sunrise": "at sunrise",
        "dawn": "at dawn",
        "dusk": "at dusk",
        "noon": "at noon",
        "twilight": "at twilight",
        "evening": "in the evening",
        "morning": "in the morning",
        "winter": "in winter",
        "summer": "in summer",
        "autumn": "in autumn",
        "spring": "in spring",
        "daytime": "by day",
        "daylight": "by daylight",
        "nighttime": "at night",
        "nightfall": "at nightfall",
        "daybreak": "at daybreak",
        "midday": "at midday",
        "afternoon": "in the afternoon",
    }
)
PLACES_ALONE = words(  # without a preposition
    "outside outdoors inside indoors underwater underground abroad upstairs downstairs downtown offshore ashore aboard"
)
ON_PLACES = words(
    "beach street grass moon hill mountain roof rooftop table sofa road bridge boat sea mars stage desk shelf bench "
    "balcony terrace island lawn ice highway runway pier deck shore coast riverbank cliff bed chair floor "
    "sidewalk planet"
)
LEFTWARDS = words("left leftwards leftward leftmost left-hand lefthand west")
RIGHTWARDS = words("right rightwards rightward rightmost right-hand righthand east")
UPWARDS = words("up upwards upward upper higher high raise lift hoist top above north")
DOWNWARDS = words("down downwards downward lower low drop sink bottom below south")
MORE = words(
    "more stronger heavier thicker denser increase boost intensify strengthen amplify extra much many up bigger "
    "larger greater enlarge grow expand taller wider big large huge giant double triple upscale raise lots plenty "
    "harder intense heavy strong thick dense brighter magnify quadruple blow additional deeper crank amp pump beef "
    "massive enormous gigantic colossal tall wide bulk fuller immense biggest largest tallest inflate swell thicken "
    "pour pile lay higher accentuate humongous ginormous jumbo mega oversized monumental widen lengthen heighten "
    "stretch upsize supersize multiply enhance deepen 2x 3x 4x x2 x3 exaggerate emphasize emphasise tower dwarf"
)
LESS = words(
    "less fewer weaker lighter thinner reduce decrease lower weaken soften down enough smaller shrink tinier minify "
    "small tiny little light weak thin halve half dial tone cut subtler fainter faint downscale miniature shorter "
    "diminish lessen fade compress minimise minimize downplay mute dampen suppress tame limit ease temper hold easy "
    "softer milder gentler sparser hint trace whisper suggestion subtle miniscule minuscule mini microscopic downsize "
    "reduction narrower teeny wee smol itsy dinky undersized shrunken shrank recede petite shrunk short smallest "
    "fewest thinned"
)
NONE = words("no none zero without any sans minus w")  # "w o", as "w/o" is read
GONE = words(  # of fog and other weather that is to go
    "remove clear wipe erase delete rid gone disappear vanish dissolve lift banish stop halt ditch lose kill away out "
    "disperse evaporate over"
)
# These turn a direction into its opposite: "too small", "not enough".
TURNS = words("too not isn't aren't doesn't don't didn't hasn't haven't")
NEGATIONS = words("can't cannot don't dont never no")  # the same, where the tagger has not marked them
EDIT_VERBS = words("remove delete erase make turn add put paint move replace swap take place show draw give")
SLIGHTLY = words(
    "lil kinda bit little slightly touch tad somewhat hair smidge slight tiny few small gently subtly notch"
)
STRONGLY = words(
    "lot much far way very significantly considerably really strongly lots greatly drastically super heavily tons "
    "dramatically massively substantially loads hella waaay"
)
NUMBERS: Mapping[str, float] = MappingProxyType(
    {
        "half": 0.5,
        "third": 1 / 3,
        "quarter": 0.25,
        "twice": 2.0,
        "double": 2.0,
        "triple": 3.0,
        "thrice": 3.0,
        "two": 2.0,
        "three": 3.0,
        "four": 4.0,
        "five": 5.0,
        "2x": 2.0,
        "x2": 2.0,
        "3x": 3.0,
        "x3": 3.0,
        "4x": 4.0,
    }
)
VERBS = (  # by what they ask for; features of the tagger
    words("replace swap exchange substitute switch trade turn transform change convert become becomes instead rather"),
    words("remove delete erase lose drop eliminate discard rid take without gone disappear vanish hide"),
    words("add include put place insert give throw bring introduce append set"),
    words("move shift push slide nudge drag pull shove relocate bring slip go"),
    words("enlarge shrink scale resize grow magnify bigger smaller larger size double halve"),
    words("duplicate copy clone another second twice double repeat again twin multiply"),
    words("paint colour color recolor recolour dye tint repaint"),
    words("draw render style stylize look looks drawn painted sketched rendered"),
    words("background setting scene place location backdrop environment somewhere where"),
)
CLASSES = (
    *VERBS,
    ARTICLES,
    DETERMINERS,
    PRONOUNS,
    PREPOSITIONS,
    COLOURS,
    STYLES | MANNERS,
    frozenset(WEATHER) | frozenset(STUFF_OF),
    frozenset(TIMES),
    LEFTWARDS | RIGHTWARDS | UPWARDS | DOWNWARDS,
    MORE,
    LESS,
    SLIGHTLY | STRONGLY | frozenset(NUMBERS),
    NONE | TURNS,
    words("and then also plus"),
)


def is_form_of(word: str, group: frozenset[str]) -> bool:
    """Whether a group has a word, or the verb that it is a form of: "increases", "increased", "increasing"."""
    bases = [word.removesuffix(ending) for ending in ("s", "d", "ed", "ing") if word.endswith(ending)]
    bases += [base + "e" for base in bases if not word.endswith("s")] + [re.sub("ie?$", "y", base) for base in bases]
    return word in group or not group.isdisjoint(bases)


def stem(word: str) -> str:
    """A word without the ending of its plural or of its adjective, for comparisons: "cats" and "cat" have the same."""
    word = STUFF_OF.get(word, word)
    for ending, other in (("ies", "y"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1 + (ending == "s") and not word.endswith("ss"):
            return word.removesuffix(ending) + other
    return word


def article_for(word: str) -> str:
    """ "a" or "an", for the word that follows."""
    low = word.casefold()
    silent = low.startswith(("hour", "honest", "heir", "honour", "honor"))
    consonant = low.startswith(("one", "uni", "use", "eu", "ukulele", "ufo"))
    return "an" if silent or (low[:1] in "aeiou" and low[:1] and not consonant) else "a"
