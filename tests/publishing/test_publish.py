"""From a run to the Hub and back, with the real client and the loopback Hub."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import TOKEN, LoopbackHub
from metrics import METRICS
from safetensors.torch import load_file
from stranger import NOT_INSTALLED
from tiny import MODEL, write_shapes

from mtl_diffusion.checkpoints.store import CheckpointError, load, save
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.publishing import export

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 6
UNET = "unet/diffusion_pytorch_model.safetensors"
TRAIN = {
    **MODEL,
    "strength_levels": 3,
    "total_batch_size": 8,
    "max_train_steps": STEPS,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": "null",
    "validation_images": 4,
    "num_threads": 1,
    "gallery": "true",
    "push_to_hub": "true",
    "hub_strategy": "checkpoint",
    "hub_model_id": "me/trained",
}


def run_in(hub, home, command, **variables):
    environment = os.environ | hub.environment(home) | variables
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(hub, work):
    """The folder of a run that publishes each checkpoint; its first upload arrives after its last
    checkpoint is written."""
    data, folder = work / "data", work / "run"
    write_shapes(data, 64, 16)

    def gate(request):
        deadline = time.monotonic() + 60
        last = folder / "checkpoints" / f"step-{STEPS}"
        while "/commit/" in request and not last.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.waited |= "/commit/" in request and not last.exists()

    gate.waited = False
    hub.gate = gate
    arguments = TRAIN | {"dataset_name": data, "output_dir": folder}
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    done = run_in(hub, work / "home", [sys.executable, "scripts/train.py", *flags])
    hub.gate = None
    assert done.returncode == 0, done.stderr
    (work / "train.log").write_text(done.stdout + done.stderr)
    assert not gate.waited, "the run waited for its upload"
    return folder


def test_checkpoints_are_published_while_the_run_goes_on(hub, run, work):
    titles = [commit.title for commit in hub.commits("me/trained")]
    assert titles == ["Trained for 2 steps", f"Trained for {STEPS} steps"]
    log = (work / "train.log").read_text()
    assert "step-4 is not published: the one before is on its way" in log
    last = hub.commits("me/trained")[-1].oid
    assert f"Published as {hub.url}/me/trained/commit/{last}" in log


def test_what_is_published(hub, run):
    files = hub.tree("me/trained")
    exported = {
        path.relative_to(run / "pipeline").as_posix(): path.read_bytes()
        for path in (run / "pipeline").rglob("*")
        if path.is_file()
    }
    assert files == exported
    assert set(files) == {
        "README.md",
        "gallery.png",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        UNET,
        *MultiTaskPipeline.code_files(),
    }


def test_no_token_anywhere(hub, run, work):
    searched = [path for path in work.rglob("*") if path.is_file()]
    assert len(searched) > 40
    for path in searched:
        assert TOKEN.encode() not in path.read_bytes(), path
    for content in hub.tree("me/trained").values():
        assert TOKEN.encode() not in content


# --- from a checkpoint alone --------------------------------------------------------------------


def test_the_average_is_exported(run, tmp_path):
    trained = export.of_checkpoint(run / "checkpoints" / "step-4")
    assert trained.step == 4 and not trained.pipeline.unet.training
    folder = export.write(trained, tmp_path / "export", pictures=False)
    exported, state = load_file(folder / UNET), load(run / "checkpoints" / "step-4").tensors
    assert exported.keys() == state["ema"].keys()
    assert all(torch.equal(exported[name], state["ema"][name]) for name in exported)
    assert not all(torch.equal(exported[name], state["unet"][name]) for name in exported)


def test_without_an_average_the_weights_are(run, tmp_path):
    checkpoint = load(run / "checkpoints" / "step-4")
    checkpoint.tensors.pop("ema")
    path = save(tmp_path, checkpoint)
    unet = export.of_checkpoint(path).pipeline.unet.state_dict()
    assert all(torch.equal(unet[name], value) for name, value in checkpoint.tensors["unet"].items())


def test_half_the_bytes(run, tmp_path):
    """What is kept in git: it loads as any other export does, in float32."""
    trained = export.of_checkpoint(run)
    whole = export.write(trained, tmp_path / "whole", pictures=False)
    half = export.write(trained, tmp_path / "half", pictures=False, half=True)
    assert (half / UNET).stat().st_size < 0.7 * (whole / UNET).stat().st_size
    expected = {name: tensor.half().float() for name, tensor in load_file(whole / UNET).items()}
    loaded = MultiTaskPipeline.from_pretrained(half).unet.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert next(trained.pipeline.unet.parameters()).dtype == torch.float32  # the model itself


def test_a_run_means_its_newest_complete_checkpoint(run, caplog):
    assert export.of_checkpoint(run).step == STEPS
    assert export.of_checkpoint(run / "checkpoints").step == STEPS


def test_the_export_of_a_checkpoint_is_that_of_the_run(run, tmp_path):
    folder = export.write(export.of_checkpoint(run), tmp_path / "export")
    for path in (run / "pipeline").rglob("*"):
        if path.is_file() and path.suffix != ".png":
            other = folder / path.relative_to(run / "pipeline")
            assert other.read_bytes() == path.read_bytes(), path


def test_no_checkpoint(run, tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint, and no run with a complete one"):
        export.of_checkpoint(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(run, tmp_path):
    checkpoint = load(run / "checkpoints" / "step-4")
    checkpoint.tensors["ema"].pop("conv_out.bias")
    with pytest.raises(CheckpointError, match=r"don't fit its configuration(.|\n)*conv_out\.bias"):
        export.of_checkpoint(save(tmp_path, checkpoint))


def test_building_it_draws_nothing_from_the_generators(run):
    before = torch.get_rng_state()
    export.of_checkpoint(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is neither empty nor an exported pipeline"):
        export.write(export.of_checkpoint(run), mine, pictures=False)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_only_the_allowed_files_are_uploaded(run, tmp_path):
    folder = export.write(export.of_checkpoint(run), tmp_path / "export", pictures=False)
    allowed = set(export.files_to_upload(folder))
    (folder / "optimizer.bin").touch()
    (folder / "events.out.tfevents").touch()
    (folder / "secrets.py").touch()
    (folder / ".env").touch()
    (folder / "link.json").symlink_to("/etc/passwd")
    assert set(export.files_to_upload(folder)) == allowed


def test_the_card_of_a_run(run):
    text = (run / "pipeline" / "README.md").read_text()
    data = ModelCard(text).data
    assert data.datasets is None and str(run.parent) not in text  # the data is in a folder
    assert "](gallery.png)" in text and 'from_pretrained("me/trained"' in text
    assert re.search(r"Training took \d+\.\d minutes on 1 thread of ", text)


# --- scripts/publish.py -------------------------------------------------------------------------

SCRIPT = """
import contextlib, io, json, os, runpy, sys
sys.argv = ["publish.py"]
from mtl_diffusion.publishing import upload
upload.DELAYS = (0.01,)
answers = []
for argv in json.loads(os.environ["CALLS"]):
    sys.argv = ["publish.py", *argv]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path("scripts/publish.py", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):
        said.write(code)
        code = 1
    answers.append([code, said.getvalue()])
from mtl_diffusion import MultiTaskPipeline
pipe = MultiTaskPipeline.from_pretrained("me/cli", revision="v1")
pipe.push_to_hub("me/installed")
answers.append([0, type(pipe).__module__])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def calls(hub, run, work):
    """What scripts/publish.py answers, several times in one process: (code, output) each."""
    (work / "metrics.json").write_text(json.dumps(METRICS))
    hub.fail("me/denied/commit/", 403)
    hub.fail("me/broken/commit/", 500, times=2)
    step = run / "checkpoints" / "step-4"
    folders = [str(work / f"export {i}") for i in range(5)]
    pushed = ["--push_to_hub", "--hub_model_id"]
    metrics = ["--metrics", str(work / "metrics.json")]
    plain = ["--no_pictures", *pushed]
    argvs = [
        [str(run), folders[0], "--private", "--revision", "v1", *metrics, *pushed, "me/cli"],
        [str(step), folders[1], *plain, "me/denied"],
        [str(step), folders[2], "--revision", "v2", "--private", *plain, "me/broken"],
        [str(work), folders[3]],
    ]
    argvs = [["--checkpoint", a, "--output_dir", b, *rest] for a, b, *rest in argvs]
    done = run_in(hub, work / "cli", [sys.executable, "-c", SCRIPT], CALLS=json.dumps(argvs))
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folders


def test_publishing_a_checkpoint(hub, calls):
    (code, said), folders = calls[0][0], calls[1]
    assert code == 0 and f"Step {STEPS} is in {folders[0]}" in said
    assert hub.repositories["model", "me/cli"].private
    assert hub.commits("me/cli", "main") == []
    assert json.loads(hub.tree("me/cli", "v1")["metrics.json"]) == METRICS
    assert b"0.875" in hub.tree("me/cli", "v1")["README.md"]
    assert calls[0][-1] == [0, "mtl_diffusion.pipeline.pipeline"]  # loaded without trust
    extras = {"metrics.json", "gallery.png"}
    assert set(hub.tree("me/installed")) == set(hub.tree("me/cli", "v1")) - extras


def test_a_failed_push_leaves_the_export_and_the_command(hub, calls, run):
    answers, folders = calls
    for number, name, words in ((1, "me/denied", "right to write"), (2, "me/broken", "HTTP 500")):
        code, said = answers[number]
        assert code == 1 and words in said and name in said
        assert (Path(folders[number]) / "model_index.json").exists()
        command = shlex.split(said.splitlines()[-1])
        assert command[:4] == [
            "mtl-diffusion",
            "publish",
            "--checkpoint",
            str(run / "checkpoints" / "step-4"),
        ]
        assert command[command.index("--output_dir") + 1] == folders[number]
        assert command[command.index("--hub_model_id") + 1] == name
        assert "--push_to_hub" in command
        assert ("--private" in command) == ("--revision" in command) == (name == "me/broken")


def test_no_checkpoint_is_a_refusal(calls):
    code, said = calls[0][3]
    assert code == 2 and "is no checkpoint" in said and "Traceback" not in said


def test_the_command_works(hub, calls, work):
    command = shlex.split(calls[0][2][1].splitlines()[-1])
    done = run_in(hub, work / "again", [sys.executable, "-m", "mtl_diffusion", *command[1:]])
    assert done.returncode == 0, done.stderr
    assert [commit.title for commit in hub.commits("me/broken", "v2")] == ["Trained for 4 steps"]


# --- a stranger's machine -----------------------------------------------------------------------

STRANGER = """
import json, os, re, sys
import torch
from pathlib import Path
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download

work, first_commit = Path(sys.argv[1]), sys.argv[2]
trust = {"trust_remote_code": True}

def load(name, **options):
    pipe = DiffusionPipeline.from_pretrained(name, **trust, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def draw(pipe):
    return pipe(generator=torch.Generator().manual_seed(0), output_type="pt").images

def weights(pipe):
    return float(sum(p.double().abs().sum() for p in pipe.unet.parameters()))

card = Path(hf_hub_download("me/trained", "README.md")).read_text()
code = re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1]
snippet = {}
exec(code, snippet)
assert {"image", "inpainted", "edited"} <= set(snippet)

last = load("me/trained")
first = load("me/trained", revision=first_commit)
last.push_to_hub("me/pushed", token=os.environ["HF_TOKEN"])
last.save_pretrained(work / "saved", push_to_hub=True, repo_id="me/saved", private=True)
(work / "with card").mkdir()
(work / "with card" / "README.md").write_text("---\\nlicense: mit\\n---\\nMine\\n")
last.save_pretrained(work / "with card", push_to_hub=True, repo_id="me/with-card")
last.push_to_hub("me/trained", commit_message="again")
assert torch.equal(draw(load("me/pushed")), draw(last))
assert torch.equal(draw(load("me/saved")), draw(last))
last.push_to_hub("me/model-v1.5")
assert torch.equal(draw(load("me/model-v1.5")), draw(last))
assert torch.equal(draw(load("me/pushed", custom_pipeline="me/pushed")), draw(last))
half = load("me/pushed", torch_dtype=torch.float16)
assert half.unet.dtype == torch.float16
last.save_pretrained(work / "both", push_to_hub=True, repo_id="me/variants")
half.save_pretrained(work / "both", variant="fp16", push_to_hub=True, repo_id="me/variants")
assert torch.equal(draw(load("me/variants")), draw(last))
again = load("me/variants", variant="fp16", torch_dtype=torch.float16)
assert all(map(torch.equal, again.unet.state_dict().values(), half.unet.state_dict().values()))
print(json.dumps({"first": weights(first), "last": weights(last), "module": type(last).__module__}))
"""


@pytest.fixture(scope="module")
def stranger(hub, run, work):
    first = hub.commits("me/trained")[0].oid
    command = [sys.executable, "-c", NOT_INSTALLED + STRANGER, str(work), first]
    done = run_in(hub, work / "elsewhere", command)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_stranger_loads_it_and_a_revision_of_it(stranger, run):
    for name, step in (("first", 2), ("last", STEPS)):
        unet = export.of_checkpoint(run / "checkpoints" / f"step-{step}").pipeline.unet
        expected = float(sum(p.double().abs().sum() for p in unet.parameters()))
        assert stranger[name] == pytest.approx(expected, rel=1e-12)
    assert stranger["first"] != stranger["last"]
    assert stranger["module"].startswith("diffusers_modules.")


def test_what_the_pipeline_pushes_itself_is_complete(hub, stranger):
    published = hub.tree("me/trained")
    pushed = set(published) - {"gallery.png"}
    for name in ("me/pushed", "me/saved", "me/with-card"):
        files = hub.tree(name)
        assert set(files) == pushed, name
        for path in pushed - {"README.md"}:
            assert files[path] == published[path], (name, path)
    assert hub.repositories["model", "me/saved"].private


def test_both_precisions_in_one_repository(hub, stranger):
    half = UNET.replace(".safetensors", ".fp16.safetensors")
    assert set(hub.tree("me/variants")) == set(hub.tree("me/pushed")) | {half}
    assert hub.tree("me/variants")[UNET] == hub.tree("me/trained")[UNET]


def test_a_card_that_is_there_is_kept(hub, stranger):
    assert hub.tree("me/with-card")["README.md"] == b"---\nlicense: mit\n---\nMine\n"
    card = hub.tree("me/trained")["README.md"].decode()
    assert "## Negative transfer" in card  # after `push_to_hub` onto it


GONE = """
from pathlib import Path
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from mtl_diffusion import MultiTaskPipeline

folder = Path(hf_hub_download("me/pushed", "model_index.json", local_files_only=True)).parent
pipes = [
    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True),
    MultiTaskPipeline.from_pretrained("me/pushed", local_files_only=True),
    MultiTaskPipeline.from_pretrained("me/pushed"),
]
seeds = [torch.Generator().manual_seed(0) for _ in pipes]
images = [pipe(generator=s, output_type="pt").images for pipe, s in zip(pipes, seeds)]
assert all(torch.equal(image, images[0]) for image in images)
"""


def test_what_loads_when_the_hub_is_gone(hub, stranger, work):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the port that discards, where nobody listens
    done = run_in(hub, work / "elsewhere", [sys.executable, "-c", GONE], **nowhere)
    assert done.returncode == 0, done.stderr
