"""Export a checkpoint to a folder that anybody can load, and put it on the Hub.

    mtl-diffusion publish --checkpoint runs/c10 --output_dir runs/c10/pipeline
    mtl-diffusion publish --checkpoint runs/c10/checkpoints/step-300 --output_dir export \\
        --push_to_hub --hub_model_id user/name

Exit codes: 0 done; 1 exported and not uploaded; 2 refused.
"""

import json
import sys
from argparse import Namespace

from mtl_diffusion.tools import flags


def parse() -> Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    where = "a checkpoint's folder, or a run's output_dir: its newest complete checkpoint"
    add("--checkpoint", required=True, type=flags.path, help=where)
    flags.add(parser, "output_dir", output_dir={"help": "an earlier export there is replaced"})
    scores = "metrics.json of mtl-diffusion evaluate, for the model card"
    add("--metrics", type=flags.path, help=scores)
    add("--no_pictures", action="store_true", help="draw no gallery for the model card")
    add("--half", action="store_true", help="write float16: half the bytes, and loads as float32")
    add("--max_shard_size", help="cut the weights into files of this size, such as 15MB")
    add("--push_to_hub", action="store_true", help="upload the folder")
    add("--hub_model_id", help="user/name; default: what the run was configured with")
    add("--private", action="store_true", help="make the repository private when it is created")
    add("--revision", help="branch to upload to, created where it isn't there; default: main")
    return parser.parse_args()


def main() -> None:
    args = parse()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from mtl_diffusion.publishing.export import of_checkpoint, push_folder, write
    from mtl_diffusion.publishing.upload import UploadError, full_name

    with flags.refusals():
        metrics = json.loads(args.metrics.read_text()) if args.metrics else None
        trained = of_checkpoint(args.checkpoint)
        name = args.hub_model_id or trained.config.repository
        repository = full_name(name) if args.push_to_hub else args.hub_model_id
        sizes = {"half": args.half, "max_shard_size": args.max_shard_size}
        pictures = not args.no_pictures
        write(trained, args.output_dir, repository, metrics=metrics, pictures=pictures, **sizes)
    print(f"Step {trained.step} is in {args.output_dir}")
    if args.push_to_hub:
        private = args.private or trained.config.hub_private_repo
        where = {"checkpoint": args.checkpoint, "private": private, "revision": args.revision}
        try:
            address = push_folder(args.output_dir, name, step=trained.step, **where)
        except UploadError as error:
            sys.exit(str(error))
        print(f"Published as {address}")
