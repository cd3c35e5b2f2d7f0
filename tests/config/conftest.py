import pytest

from configs import TASKS
from mtl_diffusion.config import command_line


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    """The tasks there are, without importing torch for their names."""
    monkeypatch.setattr(command_line, "known_tasks", lambda: TASKS)


@pytest.fixture
def write(tmp_path):
    """Writes a configuration, and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write
