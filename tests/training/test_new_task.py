"""A new task: trained, exported, and sampled with the code that was exported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from drawing import picture

from mtl_diffusion.config import to_dict

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_task_is_a_file_a_line_where_tasks_are_listed_and_a_line_in_a_config(config, tmp_path):
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")  # where others may be writing
    for name in ("mtl_diffusion", "scripts"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "model_card.md", copy)
    hub = copy / "mtl_diffusion/pipeline"
    text = (hub / "upscale.py").read_text()
    for old, new in (("upscale", "enlarge"), ("Upscale", "Enlarge"), ("FACTOR", "TIMES")):
        text = text.replace(old, new)
    (hub / "enlarge.py").write_text(text)
    listing = (hub / "pipeline.py").read_text()
    listing = listing.replace("from .tokens ", "from .enlarge import Enlarge\nfrom .tokens ", 1)
    listing = listing.replace("        Colorize(),\n", "        Colorize(),\n        Enlarge(),\n")
    assert listing.count("Enlarge") == 2
    (hub / "pipeline.py").write_text(listing)
    # The line in a config; and the same config without it is refused the task by the original.
    values = {name: value for name, value in to_dict(config).items() if name != "tasks"}
    (tmp_path / "enlarge.json").write_text(json.dumps({**values, "tasks": {"enlarge": 1}}))

    command = [sys.executable, "scripts/train.py", "--config", str(tmp_path / "enlarge.json")]
    here = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=here, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pipeline = Path(config.output_dir) / "pipeline"
    pipe = DiffusionPipeline.from_pretrained(pipeline, trust_remote_code=True)
    assert pipe.tasks == ("enlarge",)
    assert pipe("enlarge", image=picture(), num_inference_steps=3).images[0].size == (8, 8)
