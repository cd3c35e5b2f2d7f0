"""What `parse` says of a configuration that it refuses."""

import pytest

from mtl_diffusion.config import ConfigError
from mtl_diffusion.config.command_line import parse


def faults(*argv: str) -> list[str]:
    """The lines of the error, which are the whole of its message below the first."""
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert str(caught.value).splitlines()[1:] == [f"  {line}" for line in caught.value.faults]
    return caught.value.faults


def argv(words: str) -> list[str]:
    """A command line from words such as `seed=1 tasks={edit:1}`."""
    return [f"--{word.replace(':', ': ')}" for word in words.split()]
