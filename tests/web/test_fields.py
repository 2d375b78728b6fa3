"""Fields of JSON objects: every mistake is one line that names the field."""

import pytest

from minip2p.web.fields import Fields, check_number, parse_json


@pytest.mark.parametrize(
    "body", [b"", b"{", b"NaN", b'{"a": Infinity}', b"\xff", b"[" * 100_000, b"1" * 5000, b'{"a": 1,}']
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(ValueError, match="the request cannot be read as JSON"):
        parse_json(body)


@pytest.mark.parametrize("value", [[], None, "text", 3, True])
def test_only_an_object_has_fields(value):
    with pytest.raises(ValueError, match="the request must be a JSON object, not "):
        Fields(value, ("a",))


def test_unknown_fields_are_named_and_not_printed_at_length():
    with pytest.raises(ValueError, match=r"the request has no 'b'; it has a, c"):
        Fields({"a": 1, "b": 2}, ("a", "c"))
    with pytest.raises(ValueError) as error:
        Fields({"x" * 10_000: 2}, ("a",))
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    "read, value, message",
    [
        (lambda f: f.text("a", 10), 3, "a must be text, not 3"),
        (lambda f: f.text("a", 10), "x" * 11, "a has 11 characters, and 10 are the most"),
        (lambda f: f.text("a", 10), "x\ny", "a must be one line of text"),
        (lambda f: f.text("a", 10), "\0", "a must be one line of text"),
        (lambda f: f.text("a", 10), "\ud800", "a must be one line of text"),
        (lambda f: f.text("a", 10), "\u2028", "a must be one line of text"),
        (lambda f: f.integer("a", 1, 9), 0, "a must be a whole number from 1 to 9, not 0"),
        (lambda f: f.integer("a", 1, 9), True, "a must be a whole number from 1 to 9, not True"),
        (lambda f: f.integer("a", 1, 9), 2.0, "a must be a whole number"),
        (lambda f: f.integer("a", 1, 9), "2", "a must be a whole number"),
        (lambda f: f.integer("a", 1, 9), None, "a must be a whole number"),
        (lambda f: f.integer("a", 1, 9), 10**400, "a must be a whole number"),
        (lambda f: f.number("a", 0, 1), 10**400, "a must be a number from 0 to 1, not 1000"),
        (lambda f: f.number("a", 0, 1), float("nan"), "a must be a number from 0 to 1, not nan"),
        (lambda f: f.number("a", 0, 1), float("inf"), "a must be a number"),
        (lambda f: f.number("a", 0, 1), False, "a must be a number"),
        (lambda f: f.number("a", 0, 1), [0.5], "a must be a number from 0 to 1, not [0.5]"),
        (lambda f: f.flag("a"), 1, "a must be true or false, not 1"),
        (lambda f: f.items("a", 2), [1, 2, 3], "a must be a list of at most 2 values"),
        (lambda f: f.items("a", 2), {"x": 1}, "a must be a list of at most 2 values, not {'x': 1}"),
        (lambda f: f.text("b", 2), 1, "the request needs 'b'"),
    ],
)
def test_values_of_another_type_or_size_are_named(read, value, message):
    with pytest.raises(ValueError) as error:
        read(Fields({"a": value}, ("a", "b")))
    assert str(error.value).startswith(message) and len(str(error.value)) < 120


def test_values_are_read():
    fields = Fields({"a": "x", "b": 2, "c": 3, "d": True, "e": [1]}, ("a", "b", "c", "d", "e", "f"))
    assert (fields.text("a", 9), fields.integer("b", 0, 9), fields.number("c", 0, 9)) == ("x", 2, 3.0)
    assert fields.flag("d") and not fields.flag("f") and fields.items("e", 2) == [1]
    assert fields.optional_number("f", 0, 1) is None and fields.text("f", 9, "default") == "default"
    assert check_number("a", 1, 0, 1) == 1.0
