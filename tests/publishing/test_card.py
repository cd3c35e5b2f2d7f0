"""The model card: what it says of a model, of its figures, and of where it comes from."""

import re
import shlex
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline, EDMEulerScheduler
from drawing import remade
from huggingface_hub import ModelCard
from metrics import METRICS
from PIL import Image

from mtl_diffusion.checkpoints.resume import sources_on_hub
from mtl_diffusion.config import TrainConfig, to_dict
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.colorize import Colorize
from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.task import Task
from mtl_diffusion.publishing.card import Trained, model_card
from mtl_diffusion.publishing.export import write
from mtl_diffusion.publishing.upload import is_edited

GUIDED = "by class guidance 2 interval 0.28 2.9 steps 18"


def written(pipe, source="me/model", metrics=None, picture=None, config=None, **facts):
    config = config or TrainConfig(tasks={name: 1.0 for name in pipe.tasks})
    text = model_card(Trained(pipe, config, 1200, **facts), source, metrics, picture)
    assert "$" not in text and "None" not in text.partition("```python")[0]
    return text, ModelCard(text).data


def code_of(text):
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def test_a_card_without_figures(pipe):
    text, data = written(pipe, picture="gallery.png")
    assert (data.license, data.library_name) == ("apache-2.0", "diffusers")
    assert {"diffusers", "multi-task", "class-conditional"} <= set(data.tags)
    assert data.datasets is None and data.base_model is None
    assert "Nothing was measured of this model." in text and "](gallery.png)" in text
    headings = ("Use", "Intended use", "How it was trained", "Results", "Limits", "Citing")
    assert all(f"\n## {heading}\n" in text for heading in headings)
    assert not is_edited(text) and is_edited(text.replace("apache-2.0", "mit"))
    header = text.split("---\n")[1]
    assert "#" not in header and not header.isspace()


@pytest.mark.parametrize(
    ("source", "title"),
    [("me/model", "model"), ("published/birds", "birds"), ("runs/seven/pipeline", "seven")],
)
def test_the_title_is_the_name_of_the_repository_or_of_the_folder(pipe, source, title):
    config = TrainConfig(tasks={name: 1.0 for name in pipe.tasks}, output_dir="runs/seven")
    assert f"\n# {title}\n" in written(pipe, source, config=config)[0]


def test_the_figures_are_those_of_metrics_json(pipe):
    text, _ = written(pipe, metrics=METRICS)
    for line in (
        "|  | class accuracy | evaluations | frechet distance to train | n |",
        f"| {GUIDED} | 0.875 ± 0.012 | 22 |  | 1,000 |",
        "| real images |  |  | 0.25 | 1,000 |",
        "| center |  | 18.25 ± 0.012 | 1,000 |",
        "| strength 0.65 | 0.625 ± 0.012 |  |  |  | 1,000 |",
        "| class found 0.5 |  | 0.75 ± 0.012 | 18 |  | 1,000 |",
        "| class found 0.9 |  |  |  | 0.84 | 1,000 |",
        "| photo to map | 21.5 ± 0.012 | 0.3 | 18 | 1,000 |",
        "right in 90.00% of 2,000",
        METRICS["command"],
    ):
        assert line in text, line


def test_figures_of_something_else_are_refused(pipe):
    with pytest.raises(ValueError, match=r"metrics: found no summary; .*mtl-diffusion evaluate"):
        written(pipe, metrics={"class_accuracy": 0.5, "n": 3})


def test_minutes_hardware_and_command(pipe, tmp_path):
    config = TrainConfig(
        dataset_name="user/images",
        tasks={"generate": 0.5, "edit": 0.5},
        block_out_channels=[8, 16],
        learning_rate=3e-4,
        max_train_steps=1200,
        random_flip=True,
        output_dir=str(tmp_path / "private"),
    )
    minutes = {"2 threads of A": 83.25, "1 x B": 4.0}
    text, data = written(pipe, config=config, minutes=minutes, on_hub=["dataset_name"])
    assert "83.2 minutes on 2 threads of A and 4.0 minutes on 1 x B" in text
    assert data.datasets == ["user/images"] and "private" not in text
    command = re.search(r"```bash\n(mtl-diffusion train.*?)```", text, re.DOTALL)[1]
    again = to_dict(parse(shlex.split(command.replace("\\\n", " "))[2:]))
    assert again == to_dict(config) | {"output_dir": again["output_dir"]}


def test_a_distilled_model_says_how_many_steps_it_takes(pipe):
    few = remade(pipe, EDMEulerScheduler(), _chains=default_chains(80.0), _edits_at_once=True)
    config = TrainConfig(objective="distillation", pretrained_model_name_or_path="me/base")
    text, _ = written(few, config=config, on_hub=["pretrained_model_name_or_path"])
    assert "It was distilled from `me/base` to sample in few steps:" in text
    assert "`num_inference_steps` is one of 1, 2, 4 (of an edit 1 or 2), a step costs" in text


# A folder's path means nothing to others, and some are their owner's business.
@pytest.mark.parametrize("name", ["data/flowers", "~/data", "../up/it", "mnist", "me/base-v1.5"])
def test_datasets_and_base_models_are_names_on_the_hub(pipe, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "data/flowers":  # a folder that looks like a name
        (tmp_path / name).mkdir(parents=True)
    config = TrainConfig(dataset_name=name, pretrained_model_name_or_path=name)
    facts = {"config": config, "on_hub": sources_on_hub(config), "metrics": METRICS}
    text, data = written(pipe, **facts)
    if name.startswith("m"):
        assert data.datasets == [name] and data.base_model == name
        assert f"fine-tuned from `{name}`" in text
    else:
        assert name not in text and f"path/to/{Path(name).name}" in text
        assert data.datasets is None and data.base_model is None
        assert "images of a local folder" in text
        assert "fine-tuned from a pipeline in a local folder" in text


class Needy(Colorize):
    name = "needy"
    required = frozenset({"mask_image", "class_label"})
    optional = frozenset()


class Many(Colorize):
    name = "many"
    required = Task.ARGUMENTS
    optional = frozenset()


@pytest.mark.parametrize(
    "tasks, classes",
    [
        (("generate",), ("ring",)),
        (("inpaint", "colorize"), ("ring",)),
        (("edit", "generate"), ("back\\slash, two\nlines, {x}, both ' and \"", "x")),
        (("generate", "inpaint"), ()),
        (("inpaint", "needy", "many"), ("cat", "dog")),
    ],
)
def test_the_snippet_of_a_folder_runs_as_it_stands(
    build_pipe, tasks, classes, tmp_path, monkeypatch
):
    """From the folder's place, without a repository's name; also that of a task of one's own."""
    monkeypatch.chdir(tmp_path)
    for task in (Needy(), Many()):
        monkeypatch.setitem(TASKS, task.name, task)
    pipe = build_pipe(tasks=tasks, classes=classes)
    config = TrainConfig(tasks={"generate": 1.0}, output_dir="runs/it's mine")
    folder = write(Trained(pipe, config, 3), Path("runs/it's mine/pipeline"), pictures=False)
    code = code_of((folder / "README.md").read_text())
    assert 'from_pretrained("runs/it\'s mine/pipeline", trust' in code
    assert set(re.findall(r'task="(\w+)"', code)) == set(tasks)
    found = {}
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *a, **options: pipe)
    exec(code, found)
    images = [value for name, value in found.items() if isinstance(value, Image.Image)]
    assert {image.size for image in images} == {(8, 8)}
    assert len(images) == len(tasks)
