"""What a run that starts from a trained model takes from that model."""

from dataclasses import replace
from typing import Any

from ..config import ConfigError, TrainConfig, show
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.tokens import Vocabulary


def with_model(config: TrainConfig, pipeline: MultiTaskPipeline) -> TrainConfig:
    """The configuration with the values of the trained model in place of defaults.

    Raises:
        ConfigError: it names each field that was given another value than the model's.
    """
    kept, source = fields_of(pipeline), config.pretrained_model_name_or_path
    faults = []
    for name in sorted(kept.keys() & config.given):
        given = getattr(config, name)
        # The order of attention_resolutions has no meaning.
        if given != kept[name] and (name != "attention_resolutions" or {*given} != {*kept[name]}):
            faults.append(
                f"{name}: found {show(given)}; the run starts from {source}, which has "
                f"{show(kept[name])} and keeps it: leave the field out, or give that value"
            )
    if faults:
        raise ConfigError(faults)
    return replace(config, **kept, written=config.written | kept.keys())


def fields_of(pipeline: MultiTaskPipeline) -> dict[str, Any]:
    """The fields of a configuration that describe a trained model."""
    unet, sigmas = pipeline.unet.config, pipeline.scheduler.config
    vocabulary = Vocabulary.of(pipeline.tokenizer.get_vocab())
    if unet.class_embed_type is None:
        paths = "attention"
    else:
        paths = "both" if pipeline.unet.encoder_hid_proj.weight.any() else "embedding"
    attends = ["CrossAttn" in kind for kind in unet.down_block_types]
    images = pipeline.format
    return {
        "image_fit": images.fit,
        "image_mode": images.mode,
        "image_dtype": images.dtype,
        "value_range": images.value_range and list(images.value_range),
        "shown_bands": images.shown_bands and list(images.shown_bands),
        "block_out_channels": list(unet.block_out_channels),
        "layers_per_block": unet.layers_per_block,
        "attention_resolutions": [min(images.size) // 2**i for i, a in enumerate(attends) if a],
        "num_attention_heads": unet.attention_head_dim,  # diffusers' name for the number of heads
        "norm_num_groups": unet.norm_num_groups,
        "dropout": unet.dropout,
        "token_dim": unet.cross_attention_dim,
        "token_paths": paths,
        "strength_levels": len(vocabulary.strengths),
        "reserved_tokens": len(vocabulary.reserved),
        **{name: sigmas[name] for name in ("sigma_data", "sigma_min", "sigma_max")},
    }
