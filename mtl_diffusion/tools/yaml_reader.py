"""YAML 1.2, read and written by ruamel.yaml."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError


def load_strictly(text: str, doubled: list[str] | None = None) -> Any:
    """One YAML document.

    Args:
        doubled: takes the keys that are given twice, whose first values count. None: such keys
            are refused.

    Raises:
        ValueError: it can't be read.
    """
    twice: list[str] = [] if doubled is None else doubled

    class Constructor(SafeConstructor):
        def check_mapping_key(self, node, key_node, mapping, key, value):
            if key in mapping:
                twice.append(str(key))
            return key not in mapping

    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = Constructor
    try:
        value = yaml.load(text)
    except RecursionError as error:
        raise ValueError("too many lists or mappings inside one another") from error
    except (YAMLError, ValueError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if twice and doubled is None:
        raise ValueError(f"given twice: {', '.join(twice)}")
    return value


def dump(values: dict[str, Any]) -> str:
    """A YAML document, in the order of the keys."""
    yaml, stream = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style, yaml.width = None, 100
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(values, stream)
    return stream.getvalue()
