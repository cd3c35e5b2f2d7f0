"""Checks of the components of a pipeline."""

import math

from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DConditionModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from .format import ImageFormat

SCHEDULERS = (EDMDPMSolverMultistepScheduler, EDMEulerScheduler)


def plain_module(unet) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(unet, "_orig_mod", unet)


def check_component(name: str, value) -> None:
    """Checks the type and the settings of a component; other names are ignored.

    Raises:
        ValueError: the pipeline can't work with it.
    """
    checks = {"unet": _check_unet, "tokenizer": _check_tokenizer, "scheduler": _check_scheduler}
    if name in checks:
        checks[name](value)


def _check_unet(unet) -> None:
    module = plain_module(unet)
    if not isinstance(module, UNet2DConditionModel):
        hint = ""
        if isinstance(getattr(module, "module", None), UNet2DConditionModel):
            hint = "; give its .module"
        elif hasattr(module, "get_base_model"):
            hint = "; give its .get_base_model(), which keeps the adapters"
        raise ValueError(
            f"unet is {_kind(unet)}; it must be a UNet2DConditionModel, compiled or not{hint}"
        )
    config = module.config
    images = ImageFormat.of(config)
    if (config.in_channels, config.out_channels) != (images.input_channels, images.channels):
        raise ValueError(
            f"unet takes {config.in_channels} channels and gives {config.out_channels}; a unet for "
            f"images of {images.words} takes {images.input_channels} and gives {images.channels}"
        )


def _check_tokenizer(tokenizer) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer is {_kind(tokenizer)}; it must be the tokenizer that was saved with the "
            "unet, such as PreTrainedTokenizerFast.from_pretrained(folder, subfolder='tokenizer')"
        )


def _check_scheduler(scheduler) -> None:
    if not isinstance(scheduler, SCHEDULERS):
        names = " or ".join(kind.__name__ for kind in SCHEDULERS)
        raise ValueError(
            f"scheduler is {_kind(scheduler)}; it must be {names}, such as "
            "EDMEulerScheduler.from_config(pipe.scheduler.config)"
        )
    config = scheduler.config
    numbers = [config[name] for name in ("sigma_min", "sigma_max", "sigma_data")]
    low, high, data = (
        n if isinstance(n, int | float) and math.isfinite(n) and n > 0 else None for n in numbers
    )
    if None in (low, high, data) or low >= high:
        raise ValueError(
            f"scheduler has sigma_min {numbers[0]}, sigma_max {numbers[1]} and sigma_data "
            f"{numbers[2]}; they must be finite and above 0, sigma_min below sigma_max: compare "
            "scheduler/scheduler_config.json with that of the published model"
        )


def _kind(value) -> str:
    return "None" if value is None else f"of the type {type(value).__name__}"
