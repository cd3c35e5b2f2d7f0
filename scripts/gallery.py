"""Draw a picture of each task of a model, such as generate.png, and gallery.png of all of them.

Sources are held-out images of a dataset, or else samples of the model itself. The first seeds
are taken, and nothing is picked by hand.
"""

from argparse import ArgumentParser
from pathlib import Path


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pipeline", required=True, help="exported folder or name on the Hub")
    parser.add_argument("--output_dir", required=True, help="folder for the pictures")
    parser.add_argument("--dataset_name", help="take sources from this dataset's held-out split")
    parser.add_argument("--validation_split", default="test", help="held-out split")
    parser.add_argument("--num_inference_steps", type=int, help="default: the model's")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.data.images import load_images
    from mtl_diffusion.pictures import grids
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    pipe = MultiTaskPipeline.from_pretrained(args.pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if args.dataset_name:
        data = load_images(
            args.dataset_name,
            split=args.validation_split,
            resolution=pipe.size,
            split_field="validation_split",
        )
        sources = grids.to_pictures(data.images[:12])
    else:
        sources = grids.own_samples(pipe, 12, args.seed)
    options = {"seed": args.seed, "num_inference_steps": args.num_inference_steps}
    pictures = grids.pictures_of(pipe, sources, samples=10, edits=10, **options)
    pictures["gallery"] = grids.side_by_side(list(pictures.values()))
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
