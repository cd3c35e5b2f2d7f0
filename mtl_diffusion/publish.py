"""From a run to a folder that anybody can load, and from the folder to the Hub."""

import os
import shutil
from pathlib import Path
from string import Template

from huggingface_hub import HfApi

from .config import TrainConfig
from .run import Run

# A template with $names; it stands at the top of the repository.
CARD = Path(__file__).resolve().parents[1] / "model_card.md"
# What an exported folder may hold. Nothing else is ever uploaded.
UPLOADED = ("*.safetensors", "*.json", "*.py", "README.md", "*.png")


def export(run: Run) -> Path:
    """Writes <output_dir>/pipeline: weights, tokenizer, scheduler, sources and model card.

    The folder is written beside it and then renamed: it is whole, or it is the one before.
    """
    target = Path(run.config.output_dir) / "pipeline"
    temporary = target.with_name(".writing-pipeline")
    shutil.rmtree(temporary, ignore_errors=True)
    run.pipeline().save_pretrained(temporary)
    (temporary / "README.md").write_text(model_card(run), encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    os.rename(temporary, target)
    return target


def model_card(run: Run) -> str:
    """The template at the top of the repository, filled in with what this run is."""
    config = run.config
    repository = config.hub_model_id or Path(config.output_dir).name
    return Template(CARD.read_text(encoding="utf-8")).substitute(
        name=repository.rpartition("/")[2],
        repository=repository,
        dataset=config.dataset_name,
        resolution=config.resolution,
        tasks=", ".join(f"`{name}`" for name in config.shares),
        classes=", ".join(run.vocabulary.classes),
        example_class=next(iter(run.vocabulary.classes)),
        parameters=f"{sum(p.numel() for p in run.unet.parameters()) / 1e6:.1f}",
        steps=f"{config.max_train_steps:,}",
        batch_size=config.total_batch_size,
        images=f"{config.max_train_steps * config.total_batch_size:,}",
        weighting=config.task_weighting,
        proportions=", ".join(f"{name} {share:.0%}" for name, share in config.shares.items()),
        seed=config.seed,
    )


def push(folder: Path, config: TrainConfig) -> str:
    """Uploads an exported folder, and of it only what `UPLOADED` names; returns its address.

    Args:
        folder: what `export` returned.
        config: hub_model_id, None for the name of output_dir; hub_private_repo.
    """
    api = HfApi()
    repository = config.hub_model_id or Path(config.output_dir).name
    created = api.create_repo(repository, private=config.hub_private_repo, exist_ok=True)
    api.upload_folder(
        repo_id=created.repo_id,
        folder_path=folder,
        allow_patterns=list(UPLOADED),
        commit_message=f"Trained for {config.max_train_steps} steps",
    )
    return str(created)
