"""Short runs of real training, of models with 8 channels on images of 8 pixels."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import MODEL, own_state, reset_state, write_shapes

from mtl_diffusion import loop as train_module
from mtl_diffusion.config import ConfigError, TrainConfig, to_dict
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.pipeline.tokens import Vocabulary
from mtl_diffusion.training import reports
from mtl_diffusion.training import run as run_module
from mtl_diffusion.training.aggregation import AGGREGATORS

ROOT = Path(__file__).parents[2]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def one_state_a_run():
    """accelerate keeps its state for the whole process: each run gets a new one."""
    with own_state():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 64 training and 16 test images of five classes of shapes."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), 64, 16)


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        dataset_name=data,
        **MODEL,
        strength_levels=3,
        reserved_tokens=4,
        total_batch_size=8,
        max_train_steps=4,
        logging_steps=2,
        validation_images=8,
        num_threads=1,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def unwatched(monkeypatch):
    """Runs that only their weights are looked at of: no validation."""
    monkeypatch.setattr(train_module, "validate", lambda run, step, **options: None)


def weights(output_dir):
    return load_file(Path(output_dir) / "pipeline" / UNET)


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


# --- what a run leaves --------------------------------------------------------------------------


def test_a_run_leaves_everything_it_should(config):
    config = replace(config, report_to="tensorboard", validation_steps=2, checkpointing_steps=2)
    train(config)
    folder = Path(config.output_dir)
    pipe = MultiTaskPipeline.from_pretrained(folder / "pipeline")
    assert set(pipe.tasks) == {"generate", "inpaint", "edit"}
    assert pipe.class_names == ("disc", "square", "triangle", "cross", "ring")
    assert pipe(class_label="ring", num_inference_steps=2).images[0].size == (8, 8)
    assert (folder / "pipeline" / "README.md").exists()

    tables = [json.loads((folder / f"validation/step-{n}.json").read_text()) for n in (2, 4)]
    assert [table["step"] for table in tables] == [2, 4]
    assert set(tables[0]["loss"]) == set(config.tasks)
    assert all(
        entry["loss"] > 0 and entry["zero"] > 0
        for task in tables[1]["loss"].values()
        for entry in task.values()
    )
    for name in config.tasks:
        assert Image.open(folder / f"validation/step-4-{name}.png").width > 64

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (folder / "logs").glob("*/events.out.tfevents.*")
    log = EventAccumulator(str(events)).Reload()
    tags = log.Tags()
    expected = {"learning_rate", *(f"train/{name}" for name in config.tasks)}
    expected |= {f"held_out/{name}/sigma_0.1-0.3" for name in config.tasks}
    assert expected <= set(tags["scalars"])
    assert [point.step for point in log.Scalars("learning_rate")] == [2, 4]
    assert {f"samples/{name}" for name in config.tasks} <= set(tags["images"])


def test_pictures_of_a_run_without_an_average_are_drawn_without_dropout(config, monkeypatch):
    modes = []

    def draw(pipe, *arguments):
        modes.append(any(module.training for module in pipe.unet.modules()))
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(reports, "task_picture", draw)
    train(replace(config, use_ema=False, dropout=0.5, max_train_steps=2))
    assert modes == [False] * len(config.tasks)


@pytest.mark.slow
def test_it_learns_a_few_images_by_heart(config):
    config = replace(
        config,
        train_split="train[:8]",
        validation_split="train[:8]",
        max_train_steps=300,
        learning_rate=1e-2,
        block_out_channels=[16, 16],
        logging_steps=1000,
        random_flip=False,
    )
    train(config)
    table = json.loads(Path(config.output_dir, "validation/step-300.json").read_text())["loss"]
    for task, levels in table.items():
        for level in ("0.1-0.3", "0.3-1", "1-3", "3-10"):
            # Eight images of a few colours: most of what a zero network pays is saved.
            assert levels[level]["loss"] < 0.6 * levels[level]["zero"], (task, level)


def test_the_same_run_twice_is_the_same_and_another_seed_is_not(config, tmp_path, unwatched):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace(config, seed=seed, output_dir=str(tmp_path / name)))
        reset_state()
        runs[name] = weights(tmp_path / name)
    assert largest_difference(runs["a"], runs["b"]) == 0
    assert largest_difference(runs["a"], runs["c"]) > 1e-2


@pytest.mark.parametrize("weighting", ["fixed", "sum", "uncertainty"])
def test_every_weighting_trains(config, weighting, unwatched):
    given = {"generate": 1.0, "inpaint": 2.0, "edit": 0.5} if weighting == "fixed" else None
    train(replace(config, task_weighting=weighting, task_weights=given, use_ema=False))
    assert all(tensor.isfinite().all() for tensor in weights(config.output_dir).values())


# --- how a batch is cut -------------------------------------------------------------------------

# A sign of rounding in a gradient of zero becomes a whole step of Adam where epsilon is small.
CALM = {"adam_epsilon": 1e-3, "max_train_steps": 6, "use_ema": False}


def test_gradient_accumulation_changes_nothing_but_rounding(config, tmp_path, unwatched):
    runs = {}
    for name, size in (("whole", None), ("pieces", 3), ("single", 1)):
        changed = replace(config, **CALM, per_device_batch_size=size)
        train(replace(changed, output_dir=str(tmp_path / name)))
        reset_state()
        runs[name] = weights(tmp_path / name)
    train(replace(config, **CALM, seed=1, output_dir=str(tmp_path / "other")))
    assert largest_difference(runs["whole"], runs["pieces"]) < 2e-6
    assert largest_difference(runs["whole"], runs["single"]) < 2e-6
    assert largest_difference(runs["whole"], weights(tmp_path / "other")) > 1e-2


def test_gradient_checkpointing_changes_nothing_but_rounding(config, tmp_path, unwatched):
    for name in ("plain", "checkpointed"):
        changed = replace(config, **CALM, gradient_checkpointing=name == "checkpointed")
        train(replace(changed, output_dir=str(tmp_path / name)))
        reset_state()
    assert (
        largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "checkpointed")) < 2e-6
    )


def launch(config: TrainConfig, processes: int) -> None:
    """scripts/train.py under `accelerate launch`, as the README has it for CPUs."""
    default = to_dict(TrainConfig())
    flags = [
        f"--{name}={json.dumps(value) if isinstance(value, dict | list) else value}"
        for name, value in to_dict(config).items()
        if value != default[name]
    ]
    many = ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", *many),
        *("--num_processes", str(processes), "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *(str(ROOT / "scripts/train.py"), *flags),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_as_one_does(config, tmp_path):
    # Seven samples: the processes' shares differ, and so do the tasks' counts in them.
    config = replace(config, **CALM, total_batch_size=7, per_device_batch_size=3)
    for processes in (1, 2):
        launch(replace(config, output_dir=str(tmp_path / str(processes))), processes)
        facts = tmp_path / str(processes) / "checkpoints/step-6/facts.json"
        assert json.loads(facts.read_text())["num_processes"] == processes
    assert largest_difference(weights(tmp_path / "1"), weights(tmp_path / "2")) < 2e-6
    train(replace(config, seed=1, output_dir=str(tmp_path / "other")))
    assert largest_difference(weights(tmp_path / "1"), weights(tmp_path / "other")) > 1e-2


# --- gradients that are aggregated --------------------------------------------------------------


def test_the_mean_through_the_jacobian_trains_as_the_plain_sum(
    config, tmp_path, monkeypatch, unwatched
):
    monkeypatch.setattr(run_module, "build_aggregator", lambda name: lambda rows: rows.mean(0))
    runs = {}
    for name in ("sum", "upgrad"):
        changed = replace(config, **CALM, gradient_aggregation=name)
        train(replace(changed, output_dir=str(tmp_path / name)))
        reset_state()
        runs[name] = weights(tmp_path / name)
    assert largest_difference(runs["sum"], runs["upgrad"]) < 2e-6


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_aggregator_trains_in_pieces_as_in_one(config, tmp_path, name, unwatched):
    runs = {}
    for key, size in (("whole", None), ("pieces", 3)):
        changed = replace(config, **CALM, gradient_aggregation=name, per_device_batch_size=size)
        train(replace(changed, output_dir=str(tmp_path / key)))
        reset_state()
        runs[key] = weights(tmp_path / key)
    assert largest_difference(runs["whole"], runs["pieces"]) < 2e-5
    train(replace(config, **CALM, output_dir=str(tmp_path / "plain")))
    assert largest_difference(runs["whole"], weights(tmp_path / "plain")) > 1e-4


@pytest.mark.slow
def test_two_processes_aggregate_as_one_does(config, tmp_path):
    # Seven samples: the processes' shares differ, and so do the tasks' counts in them.
    config = replace(
        config, **CALM, total_batch_size=7, per_device_batch_size=3, gradient_aggregation="upgrad"
    )
    for processes in (1, 2):
        launch(replace(config, output_dir=str(tmp_path / str(processes))), processes)
        facts = tmp_path / str(processes) / "checkpoints/step-6/facts.json"
        assert json.loads(facts.read_text())["num_processes"] == processes
    assert largest_difference(weights(tmp_path / "1"), weights(tmp_path / "2")) < 2e-5


def test_without_torchjd_a_run_is_refused_by_name(config, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "torchjd" else find_spec(name, *rest),
    )
    with pytest.raises(
        ValueError, match=r"gradient_aggregation: found 'upgrad', which needs torch"
    ):
        train(replace(config, gradient_aggregation="upgrad"))


# --- precision and compilation ------------------------------------------------------------------


def test_bf16_trains_and_keeps_float32_weights(config, tmp_path, unwatched):
    for precision in ("no", "bf16"):
        output_dir = str(tmp_path / precision)
        train(replace(config, mixed_precision=precision, use_ema=False, output_dir=output_dir))
        reset_state()
    full, half = weights(tmp_path / "no"), weights(tmp_path / "bf16")
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in half.values())
    # It was in bfloat16, or the weights would be the same; and it went the same way.
    assert 0 < largest_difference(full, half) < 0.05


@pytest.mark.slow
def test_a_compiled_run_has_one_graph_and_compiles_it_once(config, monkeypatch, unwatched):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    # Graphs and guards are the same for every backend, and C++ takes minutes to compile.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, mode: compile_module(self, backend="aot_eager")
    )
    graphs, train_step = [], train_module.train_step

    def counting(*arguments):
        train_step(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(train_module, "train_step", counting)
    train(replace(config, compile=True, max_train_steps=6))
    assert not counters["graph_break"]
    assert graphs[0] >= 1 and graphs[1] <= 2 and len(set(graphs[1:])) == 1
    # A compiled module's weights have no other names.
    assert "conv_in.weight" in weights(config.output_dir)
    torch._dynamo.reset()


# --- what happens before the first step ---------------------------------------------------------


def test_dry_run_says_what_would_be_done_and_does_nothing(config, capsys):
    train(replace(config, dry_run=True, report_to="tensorboard"))
    printed = capsys.readouterr().out
    assert "max_train_steps: 4" in printed and "block_out_channels: [8, 8]" in printed
    assert re.search(r"parameters: 0\.\d\dM, of which 0\.\d\dM are trained", printed)
    assert re.search(r"step: [\d.]+ GFLOP over 8 images, on 1 process", printed)
    assert "64 training and 16 held-out images, 5 classes" in printed
    folder = Path(config.output_dir)
    assert not folder.exists() or not list(folder.iterdir())


def test_a_tracker_that_is_not_installed_is_an_error(config, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "wandb" else find_spec(name, *rest),
    )
    with pytest.raises(ConfigError, match=r"report_to.*wandb.*not installed"):
        train(replace(config, report_to="wandb"))
    assert not Path(config.output_dir, "checkpoints").exists()


# --- starting from a published model ------------------------------------------------------------


def pictures(folder, *names):
    """24 training and 8 test images of random colours, of classes with these names."""
    random = np.random.default_rng(0)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(names))
    )
    for split, count in (("train", 24), ("test", 8)):
        images = [
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(count)
        ]
        rows = {"image": images, "label": [i % len(names) for i in range(count)]}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture
def published(config, unwatched, tmp_path):
    """The folder of a pipeline of two tasks that knows cats and dogs, and has 4 reserved words."""
    (tmp_path / "pets").mkdir()
    config = replace(
        config,
        dataset_name=pictures(tmp_path / "pets", "cat", "dog"),
        tasks={"generate": 1, "edit": 1},
        output_dir=str(tmp_path / "published"),
    )
    train(config)
    reset_state()
    return Path(config.output_dir) / "pipeline"


@pytest.fixture
def further(config, published, tmp_path):
    """A run that starts from it, with a new class in front and a new task."""
    (tmp_path / "more").mkdir()
    return replace(
        config,
        dataset_name=pictures(tmp_path / "more", "bird", "dog", "cat"),
        tasks={"colorize": 1, "generate": 1},
        pretrained_model_name_or_path=str(published),
    )


def words(pipeline_folder):
    return MultiTaskPipeline.from_pretrained(pipeline_folder).tokenizer.get_vocab()


def test_new_words_take_reserved_ids_and_old_ones_keep_theirs(further, published, unwatched):
    train(further)
    old, new = words(published), words(Path(further.output_dir) / "pipeline")
    assert sorted(old.values()) == sorted(new.values())
    kept = {word: index for word, index in old.items() if not word.startswith("<reserved")}
    assert kept.items() <= new.items()
    reserved = Vocabulary.of(old).reserved
    assert new["<task:colorize>"] == reserved[0] and new["<class:bird>"] == reserved[1]
    pipe = MultiTaskPipeline.from_pretrained(Path(further.output_dir) / "pipeline")
    # Classes keep the numbers that they had; labels of the new data follow them.
    assert pipe.class_names == ("cat", "dog", "bird")
    assert set(pipe.tasks) == {"generate", "edit", "colorize"}


def test_labels_of_new_data_mean_the_same_classes(further, monkeypatch, unwatched):
    seen = []
    loop = train_module.loop
    monkeypatch.setattr(
        train_module, "loop", lambda run, *rest: (seen.append(run), loop(run, *rest))[1]
    )
    train(further)
    (run,) = seen
    names = [run.train_data.class_names[label] for label in run.train_data.labels[:6]]
    assert names == ["bird", "dog", "cat", "bird", "dog", "cat"]


def test_it_starts_from_the_published_weights(further, published, unwatched):
    train(replace(further, learning_rate=1e-12))
    before, after = load_file(published / UNET), weights(further.output_dir)
    assert largest_difference(before, after) < 1e-6


@pytest.mark.parametrize(
    ("train_only", "moved"),
    [
        ("tokens", {"encoder_hid_proj", "class_embedding"}),
        ("tokens+condition", {"encoder_hid_proj", "class_embedding", "conv_in"}),
    ],
)
@pytest.mark.parametrize("use_ema", [True, False])
def test_train_only_changes_nothing_else(further, published, train_only, moved, use_ema, unwatched):
    train(replace(further, train_only=train_only, use_ema=use_ema))
    before, after = load_file(published / UNET), weights(further.output_dir)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == moved
    assert {"encoder_hid_proj.weight", "class_embedding.linear_1.weight"} <= changed


def test_another_resolution_is_an_error(further):
    with pytest.raises(ValueError, match=r"resolution 8, resolution is 16"):
        train(replace(further, resolution=16))


def test_too_many_new_words_are_an_error(further, tmp_path):
    (tmp_path / "many").mkdir()
    many = pictures(tmp_path / "many", *"abcdef")
    with pytest.raises(ValueError, match=r"4 reserved tokens, and 7 new words need one.*colorize"):
        train(replace(further, dataset_name=many))
    assert not Path(further.output_dir, "checkpoints").exists()


# --- one task more ------------------------------------------------------------------------------

# Refuses this package, wherever it is, and then samples a task of the folder of a pipeline.
STRANGER = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mtl_diffusion":
            raise ModuleNotFoundError(f"{name} is absent")
sys.meta_path.insert(0, Absent())
import numpy as np, torch
from diffusers import DiffusionPipeline
from PIL import Image
folder, task = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
draw = lambda: torch.Generator().manual_seed(0)
images = pipe(task=task, image=source, num_inference_steps=3, generator=draw()).images
again = pipe(task=task, image=source, num_inference_steps=3, generator=draw()).images
assert images[0].size == (8, 8) and images[0].tobytes() == again[0].tobytes()
assert "mtl_diffusion" not in sys.modules
print("tasks:", *pipe.tasks)
"""


def sample_as_a_stranger(pipeline_folder, task, home):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_MODULES_CACHE": str(home / "modules")}
    command = [sys.executable, "-c", STRANGER, str(pipeline_folder), task]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_colorize_is_trained_exported_and_sampled_where_the_package_is_absent(config, tmp_path):
    config = replace(
        config,
        tasks={"colorize": 1, "generate": 1},
        max_train_steps=150,
        learning_rate=1e-2,
        total_batch_size=16,
        logging_steps=1000,
    )
    train(config)
    table = json.loads(Path(config.output_dir, "validation/step-150.json").read_text())["loss"]
    for level in ("0.3-1", "1-3", "3-10"):  # it has seen the grey image, generate has not
        assert table["colorize"][level]["loss"] < 0.8 * table["colorize"][level]["zero"]
    assert table["colorize"]["3-10"]["loss"] < table["generate"]["3-10"]["loss"]
    (tmp_path / "home").mkdir()
    printed = sample_as_a_stranger(
        Path(config.output_dir) / "pipeline", "colorize", tmp_path / "home"
    )
    assert "tasks: generate colorize" in printed


UPSCALE = '''"""The source at half its size."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from .task import Choice, Hint, Task, bernoulli


class Upscale(Task):
    name = "upscale"
    required = frozenset({"image"})
    optional = frozenset({"class_label"})

    def draw(self, n: int, size: int, class_dropout: float, generator: torch.Generator) -> Choice:
        mask = torch.ones(n, 1, size, size, device=generator.device)
        return Choice(mask=mask, drop_class=bernoulli(n, class_dropout, generator))

    def condition(self, image: Tensor, mask: Tensor, strength: Tensor, noise: Tensor) -> Hint:
        small = interpolate(avg_pool2d(image, 2), scale_factor=2)
        return Hint(image=small, mask=torch.ones_like(mask))
'''


@pytest.mark.slow
def test_a_task_is_a_file_a_line_where_tasks_are_listed_and_a_line_in_a_config(config, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("mtl_diffusion", "scripts", "model_card.md"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy / name)], check=True)
    hub = copy / "mtl_diffusion/pipeline"
    (hub / "upscale.py").write_text(UPSCALE)
    listing = (hub / "pipeline.py").read_text()
    listing = listing.replace("from .tokens ", "from .upscale import Upscale\nfrom .tokens ", 1)
    listing = listing.replace("        Colorize(),\n", "        Colorize(),\n        Upscale(),\n")
    assert listing.count("Upscale") == 2
    (hub / "pipeline.py").write_text(listing)
    # The line in a config; and the same config without it is refused the task by the original.
    values = {name: value for name, value in to_dict(config).items() if name != "tasks"}
    (tmp_path / "upscale.json").write_text(json.dumps({**values, "tasks": {"upscale": 1}}))

    command = [sys.executable, "scripts/train.py", "--config", str(tmp_path / "upscale.json")]
    here = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=here, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "home").mkdir()
    printed = sample_as_a_stranger(
        Path(config.output_dir) / "pipeline", "upscale", tmp_path / "home"
    )
    assert "tasks: upscale" in printed
