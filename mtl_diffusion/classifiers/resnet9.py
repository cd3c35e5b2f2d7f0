"""ResNet-9, the small network of the DAWNBench entries for CIFAR-10 (David Page, 2018)."""

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

HEAD_SCALE = 0.125  # keeps the logits small at first, so that a large learning rate is stable


class ResNet9Config(PretrainedConfig):
    """`width` is the number of channels of the first convolution: 64 in the original."""

    model_type = "resnet9"

    def __init__(self, width: int = 32, **kwargs):
        self.width = width
        super().__init__(**kwargs)


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(conv(channels, channels), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResNet9(PreTrainedModel):
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, K); H and W are multiples of 8.

    A first convolution, then three stages that each double the channels and halve the image, with
    a residual block after the first and the third; the largest value of each channel; a linear
    layer without bias.
    """

    config_class = ResNet9Config
    main_input_name = "pixel_values"

    def __init__(self, config: ResNet9Config):
        super().__init__(config)
        c = config.width
        self.body = nn.Sequential(
            conv(3, c),
            *(conv(c, 2 * c), nn.MaxPool2d(2), Residual(2 * c)),
            *(conv(2 * c, 4 * c), nn.MaxPool2d(2)),
            *(conv(4 * c, 8 * c), nn.MaxPool2d(2), Residual(8 * c)),
        )
        self.classifier = nn.Linear(8 * c, config.num_labels, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: torch's layers keep the initial values that they drew for themselves.

        transformers calls it for each layer, and its own draws other ones.
        """

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        features = self.body(pixel_values).amax((2, 3))
        return ImageClassifierOutput(logits=HEAD_SCALE * self.classifier(features))


def conv(channels_in: int, channels_out: int) -> nn.Sequential:
    """A 3x3 convolution, batch normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
