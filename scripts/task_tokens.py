"""Does a model use its task token? Its held-out loss with the right, each wrong and no token.

    python scripts/task_tokens.py --pipeline runs/quickstart/pipeline --dataset_name shapes \\
        --output_dir runs/quickstart/task_tokens

Writes task_tokens.json, and prints a table: how much more loss a task has with
another token, in percent of the loss with its token, by noise level. Every token sees the same
images, noise, masks and strengths; ± is the standard error of the mean difference over the images.
"""

import json

from mtl_diffusion.tools import flags


def main() -> None:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    required = {"required": True}
    flags.add(parser, "pipeline", "revision", "dataset_name", dataset_name=required)
    flags.add(parser, "dataset_config_name", "validation_split", "image_column", "label_column")
    flags.add(parser, "seed", "output_dir")
    add("--num_images", type=int, default=1000, help="held-out images")
    args = parser.parse_args()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    import torch

    from mtl_diffusion.comparison.task_tokens import compare_tokens, table
    from mtl_diffusion.data.images import load_split
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    with flags.refusals():
        pipe = MultiTaskPipeline.from_pretrained(args.pipeline, revision=args.revision)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        data = load_split(args, "validation_split", pipe.format)
        found = compare_tokens(pipe, data, args.num_images, args.seed)
    report = {
        "command": flags.command(),
        "fingerprint": data.fingerprint,
        "num_images": min(args.num_images, len(data)),
        **found,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "task_tokens.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{table(found)}\n{report['num_images']} images. Written to {args.output_dir}")


if __name__ == "__main__":
    main()
