"""YAML: one plain reading, and what is written reads back."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from common import plain_yaml
from common.errors import BadInput
from common.plain_yaml import dump_yaml, load_yaml, read_yaml


def test_the_example_holds() -> None:
    """The docstring's example gives what it says."""
    assert doctest.testmod(plain_yaml).failed == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("-2E+3", -2000.0),
        (".5e1", 5.0),
        ("1e", "1e"),
        ("e5", "e5"),
        ("'1e5'", "1e5"),
    ],
)
def test_numbers_with_exponents_are_numbers(text: str, value: object) -> None:
    """YAML 1.1 wants a point and a sign before it believes in an exponent; people don't."""
    assert load_yaml(text, where="x") == value


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """An editor's Latin-1 is told apart from a file that isn't there."""
    path = tmp_path / "site.yaml"
    with pytest.raises(
        BadInput, match=r"\(No such file or directory\); name an existing YAML file"
    ):
        read_yaml(path)
    path.write_bytes("name: Köln".encode("latin-1"))
    with pytest.raises(BadInput, match="isn't UTF-8 text; save it as UTF-8"):
        read_yaml(path)


def test_keys_are_text_as_written() -> None:
    """A site called 007, on or 2020-01-01 keeps its name."""
    content = load_yaml("{007: 1, on: 2, 2020-01-01: 3, ~: 4, '<<': 5}", where="x")
    assert content == {"007": 1, "on": 2, "2020-01-01": 3, "~": 4, "<<": 5}


def test_what_is_wrong_is_said_with_its_line() -> None:
    """File, line and reason: a key given twice, an alias."""
    with pytest.raises(BadInput, match=r"^a.yaml: is no valid YAML at line 2 \(a key .* once\)"):
        load_yaml("a: 1\na: 2\n", where="a.yaml")
    with pytest.raises(BadInput, match=r"at line 2 \(write the content out instead of \*\)"):
        load_yaml("a: &x 1\nb: *x\n", where="a.yaml")


def test_texts_that_look_like_something_else_stay_texts() -> None:
    """Whatever is written as text is read as text."""
    texts = ["1e5", "-1E+5", "on", "007", "1:30", "null", "2020-01-01", "*x", "ü", "a\nb", ""]
    content = {"list": texts, **{text: text for text in texts}}
    assert load_yaml(dump_yaml(content), where="x") == content
