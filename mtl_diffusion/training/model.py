"""The stock components that a configuration describes."""

from collections.abc import Iterable

from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
)
from diffusers.models.resnet import ResnetBlock2D
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from ..config import TrainConfig
from ..config.network import with_network
from ..pipeline.format import ImageFormat
from ..pipeline.tokens import NULL, Vocabulary

# The scheduler of each `objective`.
SCHEDULERS = {
    "denoising": EDMDPMSolverMultistepScheduler,
    "distillation": EDMEulerScheduler,
    "matching": EDMEulerScheduler,
}
# The UNet's parameters that `train_only` names, by the beginnings of their names.
TRAINED = {
    "tokens": ("encoder_hid_proj.", "class_embedding."),
    "tokens+condition": ("encoder_hid_proj.", "class_embedding.", "conv_in."),
    "all": ("",),
}


def image_format(config: TrainConfig) -> ImageFormat:
    """The format of the images that a configuration describes."""
    return ImageFormat(
        *config.size,
        mode=config.image_mode,
        dtype=config.image_dtype,
        value_range=config.value_range and tuple(config.value_range),
        shown_bands=config.shown_bands and tuple(config.shown_bands),
        fit=config.image_fit,
    )


def build_unet(config: TrainConfig, vocabulary_size: int) -> UNet2DConditionModel:
    """A UNet2DConditionModel fed with one-hot tokens, through cross-attention and time embedding.

    `encoder_hid_proj` (V to token_dim) is the token table of the cross-attention;
    `class_embedding` takes the same one-hot tokens, flattened, to the time embedding. Where the
    configuration leaves the levels open they are `with_network`'s.
    """
    config, images = with_network(config), image_format(config)
    sizes = [min(images.size) // 2**i for i in range(len(config.block_out_channels))]
    attends = [size in config.attention_resolutions for size in sizes]
    unet = UNet2DConditionModel(
        sample_size=images.sample_size,
        in_channels=images.input_channels,
        out_channels=images.channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        attention_head_dim=config.num_attention_heads,  # diffusers' name for the number of heads
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        cross_attention_dim=config.token_dim,
        encoder_hid_dim=vocabulary_size,
        encoder_hid_dim_type="text_proj",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=3 * vocabulary_size,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        time_embedding_dim=4 * config.block_out_channels[0],
    )
    unet.register_to_config(**images.mark)
    # A one-hot selects a column, but torch's default is scaled for a sum over all V: tokens would
    # start at a third of the time embedding's scale, and short runs hardly learn to use them.
    nn.init.normal_(unet.encoder_hid_proj.weight)
    nn.init.normal_(unet.class_embedding.linear_1.weight, std=3**-0.5)
    # F starts at zero, where the preconditioned loss of every noise level is about one.
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def build_scheduler(config: TrainConfig) -> SchedulerMixin:
    """The scheduler that samples; training preconditions with it."""
    return SCHEDULERS[config.objective](
        sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=config.sigma_data
    )


def train_mode(unet: UNet2DConditionModel) -> None:
    """`unet.train()`, without the copies that diffusers' residual blocks then make.

    In training mode they copy the input of their shortcut to row-major order, and the next
    convolution converts it back, which costs a tenth of a step in channels_last. Nothing else in a
    block depends on its own mode; its dropout has a mode of its own.
    """
    unet.train()
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.training = False


def freeze(unet: UNet2DConditionModel, train_only: str) -> None:
    """Freezes all parameters that `train_only` (tokens, tokens+condition or all) doesn't name."""
    for name, parameter in unet.named_parameters():
        # diffusers keeps the fixed frequencies of the time embedding as a parameter.
        fixed = name.startswith("time_proj.")
        parameter.requires_grad_(name.startswith(TRAINED[train_only]) and not fixed)


def build_tokenizer(
    tasks: Iterable[str], classes: Iterable[str], strength_levels: int, reserved: int
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a word for every task, class and strength level.

    Args:
        tasks: names of the tasks that are trained; a later task takes a reserved id.
        classes: class names in the order of the labels.
        strength_levels: words for the strengths from 0 to 1, at least 2.
        reserved: ids kept for later tasks and classes.
    """
    words = [
        NULL,
        *(f"<task:{name}>" for name in tasks),
        *(f"<strength:{i}>" for i in range(strength_levels)),
        *(f"<class:{name}>" for name in classes),
        *(f"<reserved:{i}>" for i in range(reserved)),
    ]
    return tokenizer_of({word: i for i, word in enumerate(words)})


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    tasks: Iterable[str],
    classes: Iterable[str],
    augments: Iterable[str] = (),
) -> PreTrainedTokenizerFast:
    """The same ids, with reserved ones given to the names that have no word yet.

    Raises:
        ValueError: there are more new words than reserved ids.
    """
    words = dict(tokenizer.get_vocab())
    vocabulary = Vocabulary.of(words)
    new = [f"<task:{name}>" for name in tasks if name not in vocabulary.tasks]
    new += [f"<class:{name}>" for name in classes if name not in vocabulary.classes]
    new += [f"<augment:{name}>" for name in augments if name not in vocabulary.augments]
    if len(new) > len(vocabulary.reserved):
        raise ValueError(
            f"reserved_tokens: the model has {len(vocabulary.reserved)} reserved tokens, and "
            f"{len(new)} new words need one: {', '.join(new)}; take a model with more, or drop some"
            " tasks, classes or the augmentation"
        )
    word_of = {index: word for word, index in words.items()}
    word_of |= zip(vocabulary.reserved, new, strict=False)
    return tokenizer_of({word_of[index]: index for index in range(len(word_of))})


def tokenizer_of(words: dict[str, int]) -> PreTrainedTokenizerFast:
    """The word-level tokenizer of these words, each with its id."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=NULL)),
        unk_token=NULL,
        pad_token=NULL,
        model_max_length=3,
    )
