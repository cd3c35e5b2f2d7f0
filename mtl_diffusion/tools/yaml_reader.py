"""YAML 1.2, read and written by ruamel.yaml."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def load_strictly(text: str) -> Any:
    """One YAML document.

    Raises:
        ValueError: it can't be read, or has a key twice.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except RecursionError as error:
        raise ValueError("too many lists or mappings inside one another") from error
    except (YAMLError, ValueError, TypeError) as error:
        words = str(error).partition("To suppress this check")[0].split()
        raise ValueError(" ".join(words)[:400]) from error


def dump(values: dict[str, Any]) -> str:
    """A YAML document, in the order of the keys."""
    yaml, stream = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style, yaml.width = None, 100
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(values, stream)
    return stream.getvalue()
