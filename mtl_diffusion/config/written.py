"""How the settings of a run are written down, and compared with those of an older version."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from ..tools.fields import show
from .fields import OF_MODEL, TrainConfig

# Fields of older versions -> what to set in their place.
REMOVED = {
    "ema_half_life": "ema_ramp: the half-life is that share of the images seen so far",
    "task_weights": "task_weighting, to uncertainty, uncertainty_per_task or sum",
    "gradient_aggregation": "task_weighting: the gradients of the tasks are always added",
    "perceptual_weight perceptual_images": "alignment_weight: no other loss needs a classifier",
}
# Those of them with a value that had no effect, and perceptual_images, which the weight governs.
_WITHOUT_EFFECT = {"task_weights": None, "gradient_aggregation": "sum", "perceptual_weight": 0}


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The fields as JSON and YAML can hold them, in the order of `--help`."""
    return {name: value for name, value in asdict(config).items() if name != "written"}


def resolved(config: TrainConfig) -> str:
    """The whole configuration as YAML; `--config` reads it back.

    What is a trained model's is left out, unless it was given, until that model is loaded.
    """
    from ..tools.yaml_reader import dump  # not needed for --help

    unknown = OF_MODEL - config.given if config.pretrained_model_name_or_path else ()
    return dump({name: v for name, v in to_dict(config).items() if name not in unknown})


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], allowed: Collection[str] = ()
) -> list[str]:
    """Compares two `to_dict`s, a checkpoint's and this run's: a line per field that differs.

    Fields in `allowed` may differ, and a removed one whose value had no effect. So may those of a
    trained model that the run starts from, for older checkpoints have others than its own.
    """
    passed = {*allowed, *(OF_MODEL if new.get("pretrained_model_name_or_path") else ())}
    passed |= {name for name, value in _WITHOUT_EFFECT.items() if old.get(name) == value}
    passed.add("perceptual_images")
    if old.get("ema_half_life", 0) >= old.get("ema_ramp", 1):  # the smaller one had effect
        passed.add("ema_half_life")
    lines = []
    for name in {**new, **old}:
        if name not in passed and old.get(name, ...) != new.get(name, ...):
            before, now = (show(v[name]) if name in v else "nothing" for v in (old, new))
            lines.append(f"{name}: the checkpoint has {before}, this run has {now}")
    return lines
