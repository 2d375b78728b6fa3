"""Which words are offered as objects."""

import pytest

from minip2p.tiny.scenes import ATTRIBUTES, BACKGROUNDS, OBJECTS, caption_words
from minip2p.web.objects import may_be_objects


@pytest.mark.parametrize(
    ("prompt", "objects"),
    [
        ("a cat and a house on grass", "cat house grass"),
        ("a photo of a red car on the street", "car street"),
        ("a watercolor painting of a pink cake in falling snow", "cake snow"),
        ("a zebra at the beach pencil sketch", "zebra beach"),
        ("an orange and a big orange balloon", "orange balloon"),
        ("a cat sitting on a painting of a tall building", "cat building"),
        ("the king beside a painting in his left hand", "king painting hand"),
        ("", ""),
    ],
)
def test_words_that_may_be_objects_are_offered(prompt, objects):
    words = prompt.split()
    offered = may_be_objects(words)
    assert [word for word, is_object in zip(words, offered, strict=True) if is_object] == objects.split()


def test_of_the_small_models_words_only_those_of_things_and_places_are_offered():
    words = caption_words(directions=True)
    offered = [word for word in words if may_be_objects([word, "cat"])[0] and may_be_objects([word, "of"])[0]]
    assert set(offered) == {*OBJECTS, *BACKGROUNDS, *ATTRIBUTES}
