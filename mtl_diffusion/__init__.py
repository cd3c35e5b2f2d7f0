"""One small denoiser, conditioned on task tokens, that generates, inpaints and edits."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # On demand, because the pipeline needs torch and `scripts/train.py --help` should not wait
    # for it.
    if name == "MultiTaskPipeline":
        from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

        return MultiTaskPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
