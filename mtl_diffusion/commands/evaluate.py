"""The scorecard of an exported pipeline: metrics.json, plots and pictures.

    mtl-diffusion evaluate --preset smoke --pipeline runs/quickstart/pipeline \\
        --classifier runs/quickstart/classifier --output_dir runs/quickstart/scores

An interrupted evaluation continues when it is run again. Under `accelerate launch` all processes
draw. The presets are smoke (ten minutes on two cores for a model of 8 million parameters, without
other methods), standard (10,000 samples) and full (50,000); every flag of the last group beats the
preset. Some of the pictures show images of the dataset.
"""

import json
import sys

from mtl_diffusion.evaluation.settings import read_flags
from mtl_diffusion.tools import flags


def main() -> None:
    args, settings = read_flags(__doc__)

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch
    from accelerate import Accelerator

    from mtl_diffusion.classifiers.classifier import Classifier
    from mtl_diffusion.data.images import load_splits
    from mtl_diffusion.evaluation.evaluate import below, context, write_scorecard
    from mtl_diffusion.evaluation.features import feature_space
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    with flags.refusals():
        accelerator = Accelerator(cpu=args.device == "cpu")
        device = args.device or accelerator.device
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision).to(device)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.to(getattr(torch, settings.dtype))
        if settings.compile:
            pipe.unet.to(memory_format=torch.channels_last)
            # Not the module, whose hooks count evaluations.
            pipe.unet.forward = torch.compile(pipe.unet.forward)
        classifier = Classifier.load(args.classifier, device)
        space = feature_space(args.feature_space or args.classifier, device)
        with accelerator.main_process_first():  # the first one decodes, the others read its cache
            train, test = load_splits(args, pipe.size)
        cache = args.output_dir / "features"
        given = context(pipe, classifier, space, train, test, settings, cache)
        metrics = write_scorecard(given, args.parts, args.output_dir, args, flags.command())
    if metrics is None:
        return
    print(json.dumps(metrics["summary"], indent=2))
    print(f"All of it is in {args.output_dir}: metrics.json, plots and pictures")
    if args.at_least is not None and (low := below(metrics, args.at_least)):
        sys.exit(f"class accuracy is below {args.at_least} in {', '.join(low)}")
