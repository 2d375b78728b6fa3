"""Synthesised instructions, which the tagger is trained on: captions, and templates for each intent.

In a template {slot} is filled, (a|b|) is a choice, and a word or a choice with =D or =A is marked as direction or
amount. A line that begins with "!" is an order, which may be wrapped in politeness. Every sixth line of an intent is
held out of the training.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from minip2p.planner.lexicon import ARTICLES, COLOURS, ON_PLACES, TIMES, WEATHER, article_for
from minip2p.planner.tagger import INTENTS

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

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "swap": """
! (make|turn) the {old} (a|into a) {plain}
! replace (the|that|) {old} (with|by) {new}
! turn (the|that|this) {old} into {new}
! swap (the|) {old} (for|with) {new}
! change (the|) {old} (to|into) {new}
! (substitute|exchange) {new} for the {old}
! (exchange|trade|switch) the {old} (for|with|against) {new}
! make it {new}
! (transform|convert|morph) the {old} into {new}
! put {new} (instead|in place) of the {old}
! (show|give) (me|us) {new} (instead of|rather than|in place of) (the|a) {old}
(i want|i would like|i'd like|i'd prefer|i prefer) {new} (instead of|rather than|over|in place of) (the|a) {old}
(i want|i'd like) the {old} to be {new}
the {old} (should|must|has to|needs to) be {new}
{new} (instead of|rather than|in place of|not) (the|a|) {old}
the {old} (becomes|is now|turns into|changes into|is replaced by) {new}
(what if|imagine|suppose) the {old} (was|were|is) {new}
(can|could) the {old} (be|become) {new} (instead|)
! let the {old} (be|become|turn into) {new}
instead of (the|a) {old} (i want|show|put|use|draw|have) {new}
! (have|use|show|draw|put) {new} instead of the {old}
it should be {new} (not a {old}|and not a {old}|rather than a {old})
(there should be|it should show) {new} (where the {old} is|in place of the {old}|instead of the {old})
! (swap|switch) in {new} for the {old}
! (swap|switch) the {old} out for {new}
! (take|remove) the {old} (away|) and put {new} (there|in its place|instead)
the {old} is (wrong|boring) (use|make it|i want) {new}
! make the {old} look like {new}
not (a|the) {old} but {new}
i don't want (a|the) {old} i want {new}
(how about|what about) {new} (instead of|in place of|for) the {old}
(could|can) (we|i|you) (have|see|get) {new} (instead of|in place of|rather than) the {old}
! (replace|swap) it (with|by|for) {new}
! turn (it|this|that) into {new}
(i want|i'd like|give me) {new} instead
! edit the {old} (so that it is|to be|so it becomes) {new}
{old} to {new}
the {old} → {new}
! (trade|swap) (the|my|this) {old} for {newbare}
! replace {old} by {newbare}
! (change|convert) {old} to {newbare}
i'd (rather|sooner) (see|have) {new} than (a|the) {old}
we need {new} (here|there) not (a|the) {old}
what would it look like with {new} instead of the {old}
""",
        "attribute": """
! make the {old} {adj}
! (paint|colour|color|dye|spray) the {old} {colour}
! (turn|recolor|recolour) the {old} {colour}
! change the (colour|color) of the {old} to {colour}
! change the {old} (to|into) {colour}
the {old} (should|must|has to|needs to) be {adj}
(i want|i'd like|i would like) the {old} to be {adj}
(i want|i'd like|give me|show me|i need) a {adj} {old}
! (give|have) the {old} a {adj} (look|finish|texture|color|colour)
! make (it|that|this) {adj}
! (make|turn) it {colour}
! (recolor|recolour|repaint|colour|paint) (the|that|this) {old} (in|to) {colour}
(can|could) the {old} be {adj} (instead|)
the {old} (becomes|is now|turns) {adj}
! make (that|this|his|her|my) {old} (look|) {adj}
! make the {old} look (more|) {adj}
! (let|have) the {old} be {adj}
! set the (colour|color) of the {old} to {colour}
the {old} in {colour}
(a|the) {old} but {adj}
(the|this) {old} would look better (in|if it was|if it were) {colour}
! (replace|change) the (colour|color) of the {old} (with|to) {colour}
{colour} {old}
a {adj} {old}
! make the {old} (appear|seem) {adj}
(what if|imagine) the {old} (was|were|is) {adj}
! (give|paint) the {old} a {adj} (coat|colour|color) 
! draw the {old} {adj}
! make the {old} (out of|of|from) {material}
! (use|put) a {adj} {old} (instead|)
the (colour|color) of the {old} should be {colour}
i'd (prefer|rather have|like to see|love) (the {old}|it) {adj}
! turn the (colour|color) of the {old} (to|into) {colour}
can we have the {old} in {colour}
it should be a {adj} {old}
the {old} (looks too plain|is boring) make it {adj}
! tint the {old} {colour}
! let's see (the|a) {old} in {colour}
the {old} needs (some|a coat of) {colour}
! change (his|her|the|its) {old} to {colour}
! make the {old} {adj} (instead|now)
the {old} {adj}
""",
        "add": """
! add {new} (to the picture|to the scene|to the image|)
! add {newstuff}
! (put|place|set|draw|insert) {new} (next to|beside|near|by|behind|in front of) the {beside}
! add {new} (next to|beside|near|by|behind|in front of) the {beside}
! put {new} (on|onto) the {beside}
! give the {beside} {new}
! (include|insert|draw|bring in|introduce) {new}
(i want|i'd like|i would like|i need) {new} (in the picture|in there|too|as well|in the scene)
(there should be|i want to see|i'd like to see) {new} (next to|beside|near|behind|by) the {beside}
there should (also be|be) {new} (too|as well|)
(can|could) (you|we) (add|have|put) {new} (in|there|in the background|)
! (let there be|let it have) {newstuff}
! make it {newadj}
let it {newverb}
! (throw|put|drop) in {new}
! add {new} to the {beside}
the {beside} (should have|needs|could use|wants|is missing) {new}
! (make|let) the {beside} (wear|hold|carry) {new}
the {beside} should (wear|hold|carry) {new}
(also|plus) {new}
with {new} (too|as well|)
! (have|show) {new} (next to|near|beside) the {beside}
(where|what) about {new}
(it needs|it could use|this needs|the picture needs) {new}
! include {newstuff} (too|)
i want (some|) {newstuff}
! add some {newstuff}
! put some {newstuff} (in|into the scene|)
! place {new} in the (scene|picture|foreground|background)
! fill the (scene|picture) with {newstuff}
and {new}
! (append|attach) {new} to the {beside}
! add (a pair of|a couple of|a few|some|lots of|many)=N {plural}
! (let|have) {new} appear (beside|near|next to|behind) the {beside}
how about {new} (next to the {beside}|beside the {beside}|too|in there)
! draw {new} (somewhere|in the corner|into the picture)
! have {new} stand (next to|beside|behind) the {beside}
{new} would be nice (here|next to the {beside}|)
! bring {new} into the (picture|scene)
i miss {new} (next to the {beside}|in this picture|)
give it {new}
! make it {newverb}
it should (be {newadj}|{newverb})
more {newstuff}
""",
        "remove": """
! (remove|delete|erase) the {old}
! (remove|delete|erase|drop|discard) (that|this|those|) {old}
! get rid of (the|that) {old}
! (take|wipe|cut|edit|paint|photoshop) out the {old}
! (take|wipe|cut|crop) the {old} (out|away|off)
! eliminate the {old}
without the {old}
(i don't want|i don't need|we don't need|i no longer want) (the|that|a) {old}
no {old}
the {old} (should|must|has to|needs to) (go|be gone|disappear|vanish|be removed|go away)
! make the {old} (disappear|vanish|go away|invisible)
(i want|i'd like) the {old} (gone|removed|out|deleted)
! (lose|scrap|ditch|omit|hide) the {old}
there should (be no|not be a|not be any) {old}
! leave (the|out the) {old} (out|)
! show (it|this|the picture) without (the|a) {old}
(i want|i'd like|give me) (it|the picture|this|the scene) without the {old}
the {old} is (annoying|in the way|distracting|not needed|unnecessary|ugly)
! (clear|clean) (away|up) the {old}
can the {old} (go|be removed|disappear|leave)
! remove (it|him|her)
! take (it|him|her) away
! (delete|remove|erase) the {old} from (the|this) (picture|scene|image|photo)
(where|what) if (there was|there were) no {old}
! (let|have) the {old} (leave|disappear|vanish|be gone)
(no more|not the|minus the) {old}
! kick (out the {old}|the {old} out)
! edit the {old} away
! exclude the {old}
! send the {old} (away|home)
(we|i) (can|could) do without the {old}
! pull the {old} out of (the picture|here|this)
! remove {old}
! delete {old}
! strip (away|out) the {old}
{old} out
{old} gone
! make (it|this) a picture without (the|a) {old}
it would (be|look) (better|nicer|cleaner) without (the|that|a) {old}
the {old} is not supposed to be (here|there)
! erase every {old}
""",
        "restyle": """
! (make|turn) (it|this|the picture) (|into) {style}
! (turn|convert|change|transform) (it|this|the picture|everything|the photo) (into|to) {style}
! make (it|this|the picture) look like {style}
as {style}
{style}
! (draw|paint|render|show|redo|reimagine) (it|this|everything) as {style}
in the style of (a|an|) {stylebare}=S
! (make|draw|paint|render) (it|this) {manner}
{manner}
(i want|i'd like|give me|show me) (it|this) as {style}
(i want|i'd like) {style} (of this|of it|instead|)
(i want|i'd like) (it|this|the picture) {manner}
! (use|apply|try) (a|an|the) {look} style=N
! make (it|this) {look} style=N
{look} style=N
! give (it|this|the picture) (a|an) {look} (look|style)=N
(it|this) should (be|look like) {style}
(could|can) (it|this|the picture) be {style} (instead|)
! (redraw|repaint|restyle) (it|this|the scene) (as|into) {style}
! change the style to {style}
! change the style to {look}=P
! switch to (a|an) {look} style=N
! stylize (it|this|the image) (as|like) {style}
the (whole|) (picture|scene|image) (as|like|should be) {style}
what would (it|this) look like as {style}
! do (it|this) (as|like) {style}
! (draw|paint|sketch) (it|the scene|this) {manner}
(a|the) picture {manner}
(how about|what about|let's try|let's have) {style}
! set the style to {look}=P
! (put|show) (it|this) in (a|an) {look} style=N
like {style}
! (make|turn) the (photo|picture|image|painting) (into|to) {style}
! make {style} (of|out of|from) (it|this|that)
! make the (scene|picture|image) look {look}=P
(it|this) would be (nice|great|cool) as {style}
style {look}=P
! turn everything into {style}
i'd (rather|) (see|have) {style}
! (paint|draw) (it|this) as if it were {style}
(imagine|picture) (it|this) as {style}
""",
        "place": """
! (put|place|set) the {old} {place}
! (put|place|set) (it|him|her|this|everything) {place}
! move the {old} {toplace}
! (change|switch|set) the (background|setting|scene|location|backdrop) to {placenp}
! replace the (background|setting|scenery|backdrop) (with|by) {placenp}
! (make|let) the (background|setting|scene) {placenp}
the (background|setting|scene) should be {placenp}
the {old} should be {place} (instead|)
(i want|i'd like) the {old} (to be|) {place}
! make it {time}
{atime}
! (make|turn) (it|this|day) into {time}
it (should|must|has to) be {time}
! (take|bring|send|transport|relocate) (the {old}|it) {toplace}
{place}
{place} instead
! (change|turn) the {oldplace} (to|into) {placenp}
! replace the {oldplace} (with|by) {placenp}
(what if|imagine) (the {old}|it) (was|were|is) {place}
! show the {old} {place}
! let the {old} (stand|be|sit|walk|live) {place}
with {placenp} (as|in) the (background|backdrop)
! use {placenp} (as the background|as a backdrop|for the background)
(i want|i'd like|let's have) {placenp} (as the background|in the background|behind it)
(it|this|the scene|everything) (should|has to) (happen|take place|be) {place}
! set (the scene|it|this) {place}
{atime} (please|instead)
(change|set) the time (of day|) to {time}
(i want|i'd like) (it|this) {atime}
{place} not (on|in|at) the {oldplace}
! make (the {old}|it) be {place}
(can|could) (the {old}|it) be {place}
! let (it|this) be {time}
! have the {old} {place}
the {old} belongs {place}
what would the {old} look like {place}
! (drop|teleport|beam) the {old} {toplace}
! (swap|exchange) the {oldplace} (for|with) {placenp}
the {old} {place}
! let the scene be {placenp}
we are {place} now
! (go|move|switch) {toplace}
""",
        "strength": """
more=D {stuff}
less=D {stuff}
no=D {stuff}
! add more=D {stuff}
! make the {stuff} (stronger|weaker|thicker|thinner|heavier|lighter|denser|more intense|less intense|less dense)=D
! make the {stuff} ~MUCH (stronger|weaker|thicker|thinner|heavier|lighter|denser)=D
! (increase|boost|intensify|strengthen|amplify|raise|reduce|decrease|weaken|lower|soften|lessen)=D the {stuff}
! (increase|reduce|decrease|boost|lower)=D the {stuff} ~AMOUNT
! turn (up|down)=D the {stuff}
! turn the {stuff} (up|down)=D (a bit|a little|a lot|)=A
~MUCH (more|less|fewer)=D {stuff}
! make it (foggier|mistier|snowier|rainier|windier|cloudier|smokier)=X
(too much|too many|not enough|too little|too few)=D {stuff}
there (is|are) (too much|too many|not enough|too little)=D {stuff}
there should be (more|less|no|fewer)=D {stuff}
(i want|i'd like|i need|we need) (more|less|no|fewer|stronger|weaker|heavier|lighter)=D {stuff}
(i want|i'd like|give me) ~MUCH (more|less)=D {stuff}
! (remove|clear|wipe away|get rid of)=D the {stuff}
the {stuff} (should|must|could) be (stronger|weaker|thicker|heavier|lighter|denser|thinner|more intense)=D
the {stuff} (should|could) be ~MUCH (stronger|weaker|thicker|heavier|lighter)=D
the {stuff} is (too strong|too weak|too thick|too heavy|not strong enough|too dense|too thin)=D
without=D (any|the|) {stuff}
! (dial|tone)=D the {stuff} (up|down|back)=D
! (dial|tone) down=D the {stuff}
! (double|halve|triple)=D the {stuff}
(heavier|stronger|lighter|thicker|denser|extra|additional)=D {stuff}
! let there be (more|less)=D {stuff}
(even|still|some|) (more|less)=D {stuff}
! use (more|less)=D {stuff}
! make (more|less)=D {stuff}
the {stuff} (a bit|a little|much|a lot)=A (stronger|weaker|thicker|heavier)=D
! strengthen=D the effect of the {stuff}
! put (more|less)=D {stuff} (in|into it|in the scene)
! cut (down on|back on|the)=D {stuff}
! (weaken|reduce|increase)=D {stuff}
! fade=D the {stuff} (a bit|slightly|)=A
twice=A as much=D {stuff}
half=A as much {stuff}
can (we|i) (have|get|see) (more|less|a bit more|a bit less)=D {stuff}
{stuff} (up|down)=D
i (can|can't) (hardly|barely|) see the {stuff} make it (stronger|thicker)=D
! crank up=D the {stuff}
""",
        "move": """
! move the {old} ~DIRECTIONS
! move the {old} ~AMOUNT ~DIRECTIONS
! move the {old} ~DIRECTIONS ~AMOUNT
! (shift|push|slide|nudge|drag|pull|shove) the {old} ~DIRECTIONS
! (shift|push|slide|nudge|drag|pull) the {old} ~AMOUNT ~DIRECTIONS
! (shift|push|slide|nudge|drag|pull) the {old} ~DIRECTIONS ~AMOUNT
! move it ~DIRECTIONS
! (move|shift|push) (it|him|her) ~AMOUNT ~DIRECTIONS
the {old} (should|must|has to) (be|go|stand|sit) (further|more) (left|right|up|down|to the left|to the right)=D
the {old} should (be|go) ~AMOUNT ~DIRECTIONS
! (put|place|set) the {old} ~DIRECTIONS
! (put|place) the {old} on the (left|right)=D (side|)
! (raise|lift|lower)=D the {old}
! (raise|lift|lower)=D the {old} (a bit|a little|slightly|a lot)=A
(i want|i'd like) the {old} ~DIRECTIONS
(i want|i'd like) the {old} (moved|shifted|to go) ~DIRECTIONS
(can|could) the {old} (go|be|move|stand) ~DIRECTIONS
(can|could) the {old} (go|move|be moved) ~AMOUNT ~DIRECTIONS
the {old} (a bit|a little|slightly|much)=A (more|further|) (to the left|to the right|left|right|higher|lower)=D
the {old} ~DIRECTIONS
! let the {old} (go|move|slide|be) ~DIRECTIONS
! (drag|bring|shift) the {old} over to the (left|right)=D
the {old} is too far (left|right)=O move it ~DIRECTIONS
! have the {old} stand ~DIRECTIONS
! relocate the {old} to the (left|right)=D
! (position|place) the {old} ~AMOUNT ~DIRECTIONS
! make the {old} (go|move|stand|sit) ~DIRECTIONS
! nudge the {old} ~DIRECTIONS
! scoot the {old} ~AMOUNT ~DIRECTIONS
{old} ~DIRECTIONS
{old} ~AMOUNT ~DIRECTIONS
! move {old} ~DIRECTIONS
! drop=D the {old} (a bit|a little|)=A
(further|more) (left|right)=D with the {old}
! push the {old} towards the (left|right|top|bottom)=D
! move the position of the {old} ~DIRECTIONS
! slide (it|that) ~DIRECTIONS
! bring the {old} (up|down)=D (a bit|a little|slightly|)=A
the {old} needs to (go|be|move) ~DIRECTIONS
i'd (like|prefer) (to have|) the {old} ~DIRECTIONS
! shift everything=O the {old} ~DIRECTIONS
""",
        "resize": """
! make the {old} (bigger|smaller|larger|taller|tinier|huge|tiny|giant)=D
! make the {old} ~MUCH (bigger|smaller|larger|taller|tinier)=D
! (enlarge|shrink|grow|magnify|upscale|downscale|expand)=D the {old}
! (enlarge|shrink|grow|magnify|expand)=D the {old} (a bit|a little|slightly|a lot|by half|by a third|by 20 percent)=A
! (double|halve|triple|increase|reduce|decrease)=D the size of the {old}
! (increase|reduce|decrease)=D the size of the {old} (a bit|a little|a lot|by half|by 30 percent|slightly)=A
! scale the {old} (up|down)=D
! scale (up|down)=D the {old}
! scale the {old} (up|down)=D (a bit|a little|slightly|a lot|by half|by two)=A
! make (it|him|her) (bigger|smaller|larger)=D
! make (it|him|her) ~MUCH (bigger|smaller|larger)=D
the {old} (should|must|has to|needs to|could) be (bigger|smaller|larger)=D
the {old} (should|could) be ~MUCH (bigger|smaller|larger)=D
the {old} is (too small|too big|too large|not big enough|too tiny|too huge)=D
(i want|i'd like|give me|show me) a (bigger|smaller|larger|much bigger|tinier)=D {old}
(i want|i'd like) the {old} (bigger|smaller|larger|to be bigger|to be smaller)=D
! make the {old} (twice|three times|half)=A (as big|as large|the size)=D
! make the {old} (half)=A (its size|the size|as big)
a (bigger|smaller|larger)=D {old}
(bigger|smaller|larger)=D {old}
(can|could) the {old} be (bigger|smaller|larger|a bit bigger|a bit smaller)=D
! let the {old} (grow|shrink)=D
! let the {old} be (bigger|smaller|larger)=D
! resize the {old} to be (bigger|smaller|larger)=D
! (blow up|grow|inflate)=D the {old}
the {old} (bigger|smaller|larger)=D
the {old} (a bit|a little|much|a lot|slightly)=A (bigger|smaller|larger)=D
! (shrink|enlarge|grow)=D it
! (shrink|enlarge|grow)=D {old}
! turn the {old} into a (giant|tiny|huge|miniature)=D (one|version|)
! (zoom|scale) the {old} (up|down)=D
! change the size of the {old} to (twice|half)=A
! make a (bigger|smaller)=D {old}
! have the {old} be (bigger|smaller|larger)=D
(half|twice)=A the size for the {old}
! reduce=D the {old} (a bit|by half|to half|in size|)=A
! (double|halve)=D the {old}
the {old} looks too (small|big)=T make it (bigger|smaller)=D
we need a (bigger|smaller|larger)=D {old}
! make the {old} (grow|shrink)=D (a bit|a little|a lot|)=A
! make {old} (bigger|smaller|larger)=D
""",
        "duplicate": """
! duplicate the {old}
! (copy|clone|double|repeat|multiply) the {old}
! add (another|a second|one more|an extra|a further) {old}
another {old}
(one more|a second|an extra|an additional) {old}
! make (two|2) {olds}
! (show|draw|have|put) (two|2) {olds}
(i want|i'd like|give me|there should be|i need) (two|2) {olds}
(i want|i'd like|give me|show me|let's have) (another|a second|one more|an additional) {old}
! (duplicate|copy|clone) the {old} ~DIRECTIONS
! (duplicate|copy|clone) it
! (duplicate|copy|clone|repeat) (it|him|her) ~DIRECTIONS
! add (another|a second) {old} ~DIRECTIONS
! add (another|a second|one more) {old} (on|to) the (left|right)=D
! make a copy of the {old}
! make a (copy|duplicate|clone|second copy) of (it|the {old}) ~DIRECTIONS
! (put|place|paste) a copy of the {old} (on|to) the (left|right)=D
(put|place|draw) (another|a second) {old} (next to|beside) (it|the first one|the first)
the {old} (twice|two times|a second time)
! show the {old} (twice|two times|a second time)
there should be (another|a second|one more) {old}
! (let|have) the {old} appear (twice|two times|a second time)
! give the {old} a (twin|double|companion|clone)
! double the number of {olds}
(two|2) {olds} instead of one
(can|could) (we|you|i) (have|see|add|get) (another|a second|one more) {old}
! include (another|a second) {old} (on|to) the (left|right)=D
! paste the {old} (again|a second time|once more) (~DIRECTIONS|)
! create a second {old}
{old} times two
! turn (it|the {old}) into two (of them|)
! (copy|clone|duplicate) {old}
(where|what) about (another|a second) {old}
the same {old} (again|once more|a second time)
! (draw|show|put) the same {old} (again|once more|a second time) ~DIRECTIONS
a copy of the {old} (on|to) the (left|right)=D
! repeat the {old} ~DIRECTIONS
! mirror the {old} to the other side
(i want|i'd like) to see (two|2) of the {old}
two of (these|those|them) {olds}
! add one {old} more
""",
        "other": """
(what|who|where) is (that|this|it|the {old0})
(what|how) (time|old|much) is it
(hello|hi|hey) (there|you|)
(thank you|thanks) (a lot|very much|that looks great|)
(that|this|it) looks (great|good|nice|awful|terrible)
how are you (today|)
(why|when) did you (do|make) (that|this)
(i like|i love|i hate) (the|this) {old0}
{nonsense}
{nonsense}
{nonsense} {nonsense}
(is|was) the {old0} (happy|red|real|there)
the {old0} is (nice|here|cute)
(undo|redo|save|open|close|quit|stop|continue|help)
(save|export|send|print) (the|this) (picture|file|image)
tell me a (joke|story)
(ignore|forget) (all|your|the) (previous|) (instructions|rules)
(go back|try that again|start over|next)
(describe|explain|count|name) the {old0}
(how many|which) {olds0} (are there|do you see)
(crop|rotate|flip|mirror|sharpen|blur) (it|the picture|the image)
the weather is (nice|bad) today
(yes|no|maybe|ok|okay|sure|fine)
(1|2|3|one|two) (2|3|4)
(please|now|again)
do (something|nothing|anything) (nice|funny|)
(surprise|help|answer|call) me
(write|read) a (poem|letter|story|song) (about the {old0}|)
(play|sing) (some music|a song)
(can|do) you (see|like|know) the {old0}
""",
    }
)


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
    lines = [line.strip() for line in TEMPLATES[intent].strip().splitlines()]
    return [line for n, line in enumerate(lines) if held_out in (None, n % HELD_OUT == HELD_OUT - 1)]


def make_example(rng: random.Random, *, held_out: bool = False, intent: str | None = None) -> Example:
    """A random instruction. intent: of INTENTS; None draws one, those that are refused seldom."""
    intent = intent or rng.choice([*INTENTS[:10] * 5, *INTENTS[10:] * 3])
    if intent == "several":
        return join_examples(rng, held_out)
    line = rng.choice(lines_of(intent, held_out=held_out))
    stuff = "" if intent != "strength" else "weather" if re.search(r"remove|without|no=D|\|no\|", line) else "any"
    caption = make_caption(rng, stuff=stuff, needs_place=intent == "place")
    marked = fill(rng, line, caption)
    polite, after = (POLITE, 0.15) if line.startswith("!") else (HEDGES, 0.05)
    if rng.random() < 2 * after:
        marked = [*((word, "none") for word in rng.choice(polite).split()), *marked]
    if rng.random() < after:
        marked = [*marked, *((word, "none") for word in rng.choice(AFTER).split())]
    words, tags = zip(*capitalized(rng, marked), strict=True)
    return Example(words, caption.text, intent, tags)


def capitalized(rng: random.Random, marked: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The words, of which the first has a capital letter in a third of all instructions."""
    if rng.random() < 1 / 3:
        return [(marked[0][0].capitalize(), marked[0][1]), *marked[1:]]
    return marked


def join_examples(rng: random.Random, held_out: bool) -> Example:
    """Two instructions in one, which is refused: nothing is marked."""
    pair = [make_example(rng, held_out=held_out, intent=rng.choice(INTENTS[:10])) for _ in range(2)]
    joint = rng.choice(("and", "and", "and then", "then", "and also", "also", "", "plus", "and please"))
    words = (*pair[0].words, *joint.split(), *(word.lower() for word in pair[1].words))
    return Example(words, pair[0].caption, "several", ("none",) * len(words))


def make_caption(rng: random.Random, *, stuff: str, needs_place: bool) -> CaptionSlots:
    """A random caption: one thing or two, a place, weather, a style.

    stuff: "weather", "any", or "" if none is needed.
    """
    first, old = noun_phrase(rng)
    second, neighbour = noun_phrase(rng) if rng.random() < 0.4 else ("", "")
    verb = f" {rng.choice(VERBS_OF_CAPTIONS)}" if rng.random() < 0.2 else ""
    joint = rng.choice((" and ", " and ", " with ", " next to ", " in front of "))
    subject = first + (joint + second if second else verb)
    place, place_noun = place_phrase(rng) if needs_place or rng.random() < 0.7 else ("", "")
    kind, stuff = stuff, ""
    if kind or rng.random() < 0.15:
        stuff = rng.choice(tuple(WEATHER)) if kind != "any" or rng.random() < 0.7 else any_stuff(rng)
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
    return f"{preposition} {rng.choice((article_for(noun), 'the', 'the', ''))} {noun}".replace("  ", " "), noun


def new_phrase(rng: random.Random) -> str:
    """Something new, with its article."""
    noun = any_noun(rng)
    words = (
        f"{rng.choice((rng.choice(ADJECTIVES), rng.choice(sorted(COLOURS))))} {noun}" if rng.random() < 0.3 else noun
    )
    if noun in PLURALS or rng.random() < 0.06:
        return f"{rng.choice(('two', 'three', 'some', 'a few'))} {words}"
    return f"{article_for(words)} {words}"


def slot_value(rng: random.Random, slot: str, caption: CaptionSlots) -> tuple[str, str]:
    """The text of a slot, and its tag."""
    place, place_noun = place_phrase(rng)
    looks = rng.choice(LOOKS)
    style = rng.choice(STYLE_WORDS)
    artist = rng.choice(ARTISTS) if rng.random() < 0.8 else any_noun(rng).capitalize()
    time = rng.choice(tuple(TIMES))
    new = new_phrase(rng)
    attribute = rng.choice((rng.choice(ADJECTIVES), rng.choice(sorted(COLOURS))))
    words, tag = {
        "old": (caption.old, "old"),
        "olds": (caption.old if caption.old.endswith("s") else f"{caption.old}s", "old"),
        "old0": (rng.choice((caption.old, any_noun(rng))), "none"),
        "olds0": (f"{caption.old}s", "none"),
        "beside": (caption.neighbour, "beside"),
        "oldplace": (caption.place, "old"),
        "stuff": (caption.stuff or "fog", "old"),
        "new": (new, "new"),
        "plain": (rng.choice(ANIMALS + THINGS + PEOPLE), "new"),
        "newbare": (new.split(" ", 1)[1] if new.split()[0] in ARTICLES else new, "new"),
        "plural": (rng.choice(PLURALS), "new"),
        "newstuff": (rng.choice(tuple(WEATHER)), "new"),
        "newadj": (rng.choice(("foggy", "snowy", "rainy", "stormy", "windy", "cloudy", "sunny", "misty")), "new"),
        "newverb": (rng.choice(("snow", "rain", "hail", "storm")), "new"),
        "adj": (attribute if rng.random() < 0.9 else f"{rng.choice(('bright', 'dark', 'light'))} {attribute}", "new"),
        "colour": (rng.choice(sorted(COLOURS)), "new"),
        "material": (rng.choice(("wood", "stone", "glass", "gold", "ice", "paper", "metal", "chocolate")), "new"),
        "place": (place, "new"),
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


MARKS: Mapping[str, str] = MappingProxyType(
    {"D": "direction", "A": "amount", "N": "new", "S": "new", "P": "new", "X": "old"}
)
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
