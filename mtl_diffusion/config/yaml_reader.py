"""YAML as a configuration needs it: the core schema of YAML 1.2, small documents, no surprises."""

import re
from collections import Counter
from typing import Any

import yaml

_DEPTH = 10  # lists and mappings inside one another; a configuration needs two
_DIGITS = 400  # of a number; Python takes time that grows with their square


class _Loader(yaml.SafeLoader):
    """PyYAML, which is for YAML 1.1, with the words and numbers of YAML 1.2.

    `no` is a word, 010 is ten, 1:30 is a text, 2e-3 is a number, and there are no dates. An alias
    may refer to a single value only, because nested lists of aliases grow exponentially. Keys that
    are given twice are noted; PyYAML drops the first in silence.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.duplicates: list[str] = []
        self.depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            anchor = self.peek_event().anchor
            if isinstance(self.anchors.get(anchor), yaml.CollectionNode):
                raise yaml.YAMLError(f"*{anchor} stands for a list or a mapping; write it out")
        if self.depth > _DEPTH:
            raise yaml.YAMLError(f"more than {_DEPTH} lists or mappings inside one another")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.duplicates += [key for key, count in Counter(keys).items() if count > 1]
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > _DIGITS:
            raise yaml.YAMLError(f"a number of {len(text)} digits")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    # The help of our own fields writes "None".
    ("null", r"~|null|Null|NULL|None|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"{_TAG}{_kind}",
        re.compile(f"(?:{_pattern})$"),
        [*_first, *([""] if _kind == "null" else [])],
    )
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_number)


def load(text: str) -> tuple[Any, list[str]]:
    """One YAML document, and the keys that it gives twice.

    Raises:
        yaml.YAMLError: it can't be read.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.duplicates
    finally:
        loader.dispose()


def load_strictly(text: str) -> Any:
    """One YAML document without a key that is given twice.

    Raises:
        yaml.YAMLError: it can't be read.
    """
    value, duplicates = load(text)
    if duplicates:
        raise yaml.YAMLError(f"given twice: {', '.join(duplicates)}")
    return value
