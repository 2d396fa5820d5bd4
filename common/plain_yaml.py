"""YAML without its surprises: one plain reading of the text, or a sentence that says what fails.

YAML 1.2 (https://yaml.org/spec/1.2.2) where people expect it: `1e-6` is a number, keys are text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from common.errors import BadInput

# What PyYAML raises; the last four on values such as !!bool x, 2020-13-01 or ten thousand [.
_FAULTS = (yaml.YAMLError, AttributeError, LookupError, RecursionError, ValueError)


class _Loader(yaml.SafeLoader):
    """Keys are text as written, none is given twice, and nothing refers elsewhere."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few of them can stand for gigabytes
            problem = "write the content out instead of *"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        content: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in content:
                problem = "a key must be plain text, given once"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            content[key.value] = self.construct_object(value, deep=deep)
        return content


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read as text."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of `key: value` lines; raises BadInput naming the file and the line at fault."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(
            f"{path}: can't be read ({error.strerror}); name an existing YAML file."
        ) from None
    except UnicodeDecodeError:
        raise BadInput(
            f"{path}: isn't UTF-8 text; save it as UTF-8, or name a YAML file."
        ) from None
    content = load_yaml(text, where=path.name)
    if not isinstance(content, dict):
        raise BadInput(f"{path.name}: must hold `key: value` lines; see `fedward schema`.")
    return content


def load_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML text; raises BadInput where it has none.

    >>> load_yaml("{delta: 1e-6, on: [1, two]}", where="example")
    {'delta': 1e-06, 'on': [1, 'two']}
    """
    try:
        return yaml.load(text, _Loader)
    except _FAULTS as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" at line {mark.line + 1}" if mark else ""
        why = f" ({problem})" if problem else ""
        raise BadInput(f"{where}: is no valid YAML{line}{why}; mend it there.") from None


def dump_yaml(content: dict[str, Any]) -> str:
    """A YAML text that `load_yaml` reads back as `content`."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
