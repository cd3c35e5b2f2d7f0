"""A published model on a machine without this package: loaded, drawn from, and pushed again."""

import json
import sys

import pytest
from loopback_hub import TOKEN
from stranger import NOT_INSTALLED, files

from mtl_diffusion.publishing import export

pytestmark = pytest.mark.slow

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
assert {"image", "inpaint_image", "edit_image"} <= set(snippet)

last = load("me/trained")
first = load("me/trained", revision=first_commit)
last.push_to_hub("me/pushed", token=os.environ["HF_TOKEN"])
last.save_pretrained(work / "saved", push_to_hub=True, repo_id="me/saved", private=True)
last.push_to_hub("me/trained", commit_message="again")
assert torch.equal(draw(load("me/pushed")), draw(last))
assert torch.equal(draw(load("me/saved")), draw(last))
last.push_to_hub("me/model-v1.5")
first.save_pretrained(work / "p", max_shard_size="20KB", push_to_hub=True, repo_id="me/parts")
last.push_to_hub("me/parts")
assert torch.equal(draw(load("me/parts")), draw(last))
assert torch.equal(draw(load("me/model-v1.5")), draw(last))
half = load("me/pushed", torch_dtype=torch.float16)
assert half.unet.dtype == torch.float16
last.push_to_hub("me/half")  # whose weights stay beside the variant
half.save_pretrained(work / "half", variant="fp16", push_to_hub=True, repo_id="me/half")
again = load("me/half", variant="fp16", torch_dtype=torch.float16)
assert all(map(torch.equal, again.unet.state_dict().values(), half.unet.state_dict().values()))
assert torch.equal(draw(load("me/half")), draw(last))
print(json.dumps({"first": weights(first), "last": weights(last), "module": type(last).__module__}))
"""


@pytest.fixture(scope="module")
def stranger(hub, trained, work):
    """What the script printed, of a model in two commits: after step 2, and after step 6."""
    for step in (2, 6):
        model = export.of_checkpoint(trained / "checkpoints" / f"step-{step}")
        hub.add("me/trained", files(export.write(model, work / f"step {step}")))
    first = hub.commits("me/trained")[0].oid
    command = [sys.executable, "-c", NOT_INSTALLED + STRANGER, str(work), first]
    done = hub.run(command, work / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_stranger_loads_it_and_a_revision_of_it(stranger, trained):
    for name, step in (("first", 2), ("last", 6)):
        unet = export.of_checkpoint(trained / "checkpoints" / f"step-{step}").pipeline.unet
        expected = float(sum(p.double().abs().sum() for p in unet.parameters()))
        assert stranger[name] == pytest.approx(expected, rel=1e-12)
    assert stranger["first"] != stranger["last"]
    assert stranger["module"].startswith("diffusers_modules.")


def test_what_the_pipeline_pushes_itself_is_complete(hub, stranger):
    published = hub.tree("me/trained")
    pushed = set(published) - {"gallery.png"}
    for name in ("me/pushed", "me/saved", "me/parts"):
        tree = hub.tree(name)
        assert set(tree) == pushed, name
        assert all(tree[path] == published[path] for path in pushed - {"README.md"}), name
    assert hub.repositories["model", "me/saved"].private
    # A card that is there is kept.
    assert "## Negative transfer" in published["README.md"].decode()


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
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the discard port, where no server listens
    done = hub.run([sys.executable, "-c", GONE], work / "elsewhere", **nowhere)
    assert done.returncode == 0, done.stderr
