import pytest


@pytest.fixture
def write(tmp_path):
    """Writes a configuration, and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write
