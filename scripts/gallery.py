"""Draw a picture of each task of a model, such as generate.png, and gallery.png of all of them.

Sources are the first held-out images of a dataset, or else samples of the model itself: the first
of each class, or with a classifier, of the first sixteen the one that it is surest of.
"""

from mtl_diffusion.tools import flags
from mtl_diffusion.tools.memory import keep_freed_memory


def main() -> None:
    parser = flags.parser(__doc__)
    flags.add(parser, "pipeline", "output_dir", "dataset_name", "dataset_config_name")
    flags.add(parser, "validation_split", "image_column", "label_column")
    flags.add(parser, "num_inference_steps", "seed")
    chooses = "chooses the sources among samples: output_dir of mtl-diffusion train_classifier"
    parser.add_argument("--classifier", type=flags.path, help=chooses)
    args = parser.parse_args()
    keep_freed_memory()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.classifiers.classifier import Classifier
    from mtl_diffusion.data.images import load_split
    from mtl_diffusion.pictures import grids
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    with flags.refusals():
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        options = {"seed": args.seed, "num_inference_steps": args.num_inference_steps}
        sources = ()
        if args.dataset_name:
            sources = load_split(args, "validation_split", pipe.format).arrays
        elif args.classifier:
            classifier = Classifier.load(args.classifier, pipe.device)
            sources = grids.surest_samples(pipe, classifier, **options)
    pictures = grids.pictures_of(pipe, sources, **options)
    pictures["gallery"] = grids.side_by_side(list(pictures.values()))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(args.output_dir / f"{name}.png")
        print(args.output_dir / f"{name}.png")


if __name__ == "__main__":
    main()
