"""A Space: pushed to the loopback Hub, fetched, and opened where this package is not installed."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import tomllib
import torch
from huggingface_hub import RepoCard
from loopback_hub import TOKEN
from safetensors.torch import load
from stranger import NOT_INSTALLED, files

from mtl_diffusion.publishing.space import GRADIO

ROOT = Path(__file__).parents[2]
# Of another model; and what its owner put there.
OLD = {"pipeline/model_index.json": b"{}", "pipeline/pipeline_01234567.py": b""}
MINE = {"pipeline/mine.txt": b"mine"}


@pytest.fixture(scope="module")
def pipeline(build_pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "pipeline"
    build_pipe().save_pretrained(folder)
    (folder / "notes.txt").write_text("not for others")
    return folder


@pytest.fixture(scope="module")
def pushed(hub, pipeline, publish):
    """The files of the Space, after two calls that push it."""
    hub.create("me/page", "space", private=True)
    hub.add("me/page", OLD | MINE, kind="space")
    call = ["--pipeline", pipeline, "--half", "--space", "me/page", "--private"]
    (code, said), (again, same) = publish(call, call)
    assert code == again == 0 and f"{hub.url}/spaces/me/page" in same, said + same
    space = hub.repositories["space", "me/page"]
    assert space.private and len(space.branches["main"]) == 3  # the second call changed nothing
    return hub.tree("me/page", kind="space")


@pytest.mark.slow
def test_what_a_space_is_made_of(pushed, pipeline):
    demo = ROOT / "mtl_diffusion/demo"
    page = {f"page/demo/{path.name}" for path in demo.glob("*.py")} | {"page/pipeline/rgb.py"}
    model = {f"pipeline/{name}" for name in files(pipeline)} - {"pipeline/notes.txt"}
    own = {"README.md", "app.py", "requirements.txt"}
    assert set(pushed) == own | page | model | set(MINE)
    weights = load(pushed["pipeline/unet/diffusion_pytorch_model.safetensors"]).values()
    assert {tensor.dtype for tensor in weights} == {torch.float16}
    assert pushed["page/demo/page.py"] == (demo / "page.py").read_bytes()
    header = RepoCard(pushed["README.md"].decode()).data.to_dict()
    assert header["title"] == "page" and header["app_file"] == "app.py"
    assert header["sdk"] == "gradio" and header["sdk_version"] == GRADIO
    assert re.search(r"^torch==[\d.]+$", pushed["requirements.txt"].decode(), re.M)
    assert not any(TOKEN.encode() in content for content in pushed.values())


@pytest.mark.slow
def test_a_space_opens_where_this_package_is_not_installed(pushed, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: mtl_diffusion[demo]")
    for name, content in pushed.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    code = NOT_INSTALLED + "import runpy, sys\nsys.path.insert(0, '.')\nrunpy.run_path('app.py')"
    with open(tmp_path / "log", "w") as log:
        options = {"cwd": tmp_path, "env": os.environ | {"TMPDIR": str(tmp_path)}}
        server = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, **options)
    try:
        deadline = time.monotonic() + 240
        while not (found := re.search(r"http://[\d.:]+", (tmp_path / "log").read_text())):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with urllib.request.urlopen(found[0]) as answer:
            assert "mtl_diffusion: me/page" in answer.read().decode()
        assert list(tmp_path.glob("mtl_diffusion-demo-*"))
        server.terminate()  # uploads and results go with it
        server.wait(60)
        assert not list(tmp_path.glob("mtl_diffusion-demo-*"))
    finally:
        server.kill()
        server.wait()


def test_a_space_gets_the_gradio_that_the_page_is_tested_with():
    assert f"\ngradio=={GRADIO}\n" in (ROOT / "constraints.txt").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras["optional-dependencies"]["demo"] == [f"gradio>={GRADIO.rpartition('.')[0]},<7"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--pipeline", "x"], "--pipeline needs --space"),
        (["--pipeline", "x", "--static"], "--static: expected one argument"),
        (["--checkpoint", "x"], "--checkpoint needs --output_dir"),
        ([], "one of the arguments --checkpoint --pipeline is required"),
    ],
)
def test_what_is_refused(flags, words, monkeypatch, capsys, tmp_path):
    from mtl_diffusion.commands.publish import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mtl-diffusion publish", *flags])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and words in capsys.readouterr().err
