"""The rate of sampling."""

from ..pipeline.pipeline import MultiTaskPipeline
from .timing import Measured, machine, seconds


def time_sampling(
    pipe: MultiTaskPipeline, batch_size: int, steps: int | None, rounds: int
) -> dict[str, object]:
    """Images a second of the generate task, without guidance: one evaluation a step.

    Args:
        steps: of the sampler; None: the model's default.
        rounds: batches that are timed, after one that is not.

    Raises:
        ValueError: the pipeline has not learned to generate, or can't take so many steps.
    """

    def draw() -> None:
        pipe(
            num_images_per_prompt=batch_size,
            guidance_scale=1.0,
            num_inference_steps=steps,
            output_type="pt",
        )

    draw()
    rates = Measured.of(batch_size / seconds(draw, pipe.device) for _ in range(rounds))
    return {
        "images_per_second": rates,
        "batch_size": batch_size,
        "steps": pipe.num_timesteps,
        **machine(pipe.device),
    }
