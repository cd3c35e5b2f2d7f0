"""The smallest model, the smallest data, and an accelerator for each run in one process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mtl_diffusion.data.shapes import shapes

# Fields of a configuration: 8x8 pixels, 8 channels, attention at 4x4; nothing drawn for the card.
MODEL = {
    "resolution": 8,
    "block_out_channels": [8, 8],
    "attention_resolutions": [4],
    "norm_num_groups": 4,
    "token_dim": 8,
    "gallery": False,
}
# Those of a run of seconds, but for its data and its folder.
RUN = {
    **MODEL,
    "strength_levels": 3,
    "reserved_tokens": 4,
    "total_batch_size": 8,
    "max_train_steps": 4,
    "logging_steps": 2,
    "validation_images": 8,
    "num_threads": 1,
    "report_to": "none",
}


def flags(**fields) -> list[str]:
    """A configuration's fields as a command line has them; values are what json and str make."""
    return [f"--{name}={value}" for name, value in fields.items()]


def write_shapes(folder: Path, num_train: int, num_test: int) -> str:
    """The embedded dataset as a folder of parquet files, which a run reads as any other one."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in shapes(8, num_train=num_train, num_test=num_test).items():
        rows.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def unet_of(folder: str | Path, name: str = "unet") -> dict:
    """The UNet's weights in a run's newest checkpoint; name: "ema" for their average."""
    from safetensors.torch import load_file

    newest = max(Path(folder).glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))
    return load_file(newest / f"{name}.safetensors")


def few_steps(set_attribute: Callable[[type, str, object], None]) -> None:
    """Models of many steps draw in three by default: their pictures are not compared."""
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    own = MultiTaskPipeline.default_steps

    def three(self, task):
        return 3 if self.chains is None else own(self, task)

    set_attribute(MultiTaskPipeline, "default_steps", three)


@contextmanager
def own_state() -> Iterator[None]:
    """accelerate's state, else that of the whole process, and torch's threads end with this."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    threads = torch.get_num_threads()
    try:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        torch.set_num_threads(threads)
