"""Agreement between processes, and I/O errors that are logged instead of raised."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TextIO

import torch
from accelerate import PartialState
from torch import Tensor

logger = logging.getLogger(__name__)


def any_process(flag: bool | Tensor) -> bool:
    """Whether the flag is set on any process: the same answer on all of them."""
    if PartialState().num_processes == 1:
        return bool(flag)
    total = torch.tensor(float(flag))
    torch.distributed.all_reduce(total, group=_host_group())
    return total.item() > 0


@cache
def _host_group() -> torch.distributed.ProcessGroup | None:
    """A gloo group over all processes, which does not wait for their GPUs; None: the default one.

    It is made at the first call, which all processes make together, and is never destroyed: see
    `launch/preflight.py`.
    """
    if torch.distributed.get_backend() == "gloo":
        return None
    return torch.distributed.new_group(backend="gloo")


def from_all_processes(lines: list[str]) -> list[str]:
    """The lines of every process, in the order of the processes, each of them once."""
    state = PartialState()
    gathered = [lines]
    if state.num_processes > 1:
        gathered = [None] * state.num_processes
        torch.distributed.all_gather_object(gathered, lines)
    return list(dict.fromkeys(line for part in gathered for line in part))


@contextmanager
def io_errors_logged(what: str) -> Iterator[None]:
    """Logs an OSError of the block, in place of raising it: a full disk must not end the run.

    Args:
        what: the beginning of the message, such as "the curves could not be logged".
    """
    try:
        yield
    except OSError as error:
        logger.error("%s: %s; training goes on", what, error)


class Terminal:
    """A text stream that ignores write errors: its window was closed, or its reader has died."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
