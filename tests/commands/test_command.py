"""`mtl-diffusion`, `python -m mtl_diffusion`, and what the package exports."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mtl_diffusion
from mtl_diffusion import loop
from mtl_diffusion.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_a_command_is_a_script_too():
    folder = ROOT / "mtl_diffusion/commands"
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *COMMANDS}
    for name in COMMANDS:
        script = ast.parse((ROOT / f"scripts/{name}.py").read_text())
        (imported,) = (node for node in script.body if isinstance(node, ast.ImportFrom))
        assert imported.module == f"mtl_diffusion.commands.{name}"


def test_the_entry_point_is_the_command():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="mtl-diffusion")
    assert entry.load() is main


def answer(monkeypatch, capsys, *words):
    """(exit code, standard output, standard error) of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["mtl-diffusion", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def test_help_is_shown(monkeypatch, capsys):
    code, out, _ = answer(monkeypatch, capsys, "--help")
    assert code == 0 and out.startswith("usage: mtl-diffusion COMMAND ")
    for name, what in COMMANDS.items():
        assert f"  {name} " in out and what in out
    code, out, _ = answer(monkeypatch, capsys, "sample", "--help")
    assert code == 0 and out.startswith("usage: mtl-diffusion sample ") and "--task" in out
    assert answer(monkeypatch, capsys, "--version")[:2] == (0, mtl_diffusion.__version__ + "\n")


@pytest.mark.parametrize("name, flag", [("publish", "checkpoint"), ("sample", "pipeline")])
def test_the_home_directory_may_be_short(name, flag, monkeypatch, capsys, tmp_path):
    """A shell does not replace ~ after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [name, f"--{flag}=~/nothing", "--output_dir=x"]
    code, _, err = answer(monkeypatch, capsys, *words)
    assert code == 2 and str(tmp_path / "nothing") in err


@pytest.mark.parametrize("words", [[], ["trian"], ["--config", "x"]])
def test_an_unknown_command_is_refused(words, monkeypatch, capsys):
    code, out, err = answer(monkeypatch, capsys, *words)
    assert code == 2 and out == "" and "COMMAND" in err


def test_a_module_trains_as_the_script_does():
    """Run as a process; what it refuses costs no start of torch."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mtl_diffusion", "train", "--seed=x", "--token_dim=0"]
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stdout == "" and "Traceback" not in refused.stderr
    assert "2 faults in the configuration:" in refused.stderr


def test_what_is_exported_at_the_top():
    assert all(callable(getattr(mtl_diffusion, name)) for name in mtl_diffusion.__all__)
    assert mtl_diffusion.train is loop.train
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        mtl_diffusion.trian  # noqa: B018


def test_every_file_has_the_version():
    version = mtl_diffusion.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text()
