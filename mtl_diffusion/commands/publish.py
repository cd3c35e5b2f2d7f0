"""Export a checkpoint as a pipeline, and publish it on the Hub.

    mtl-diffusion publish --checkpoint runs/c10 --output_dir runs/c10/pipeline
    mtl-diffusion publish --checkpoint runs/c10/checkpoints/step-300 --output_dir export \\
        --push_to_hub --hub_model_id user/name

Exit codes: 0 done; 1 exported and not uploaded; 2 refused.
"""

import json
import sys
from pathlib import Path

from mtl_diffusion.config.flags import refusing, script_parser


def main() -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="a checkpoint, or a run: its newest one")
    add("--output_dir", required=True, type=Path, help="folder; an earlier export is replaced")
    add("--metrics", type=Path, help="metrics.json of scripts/evaluate.py, for the model card")
    add("--no_pictures", action="store_true", help="no gallery for the model card")
    add("--half", action="store_true", help="write float16, which loads as float32")
    add("--max_shard_size", help="split the weights into files of this size, such as 15MB")
    add("--push_to_hub", action="store_true", help="upload the folder")
    add("--hub_model_id", help="user/name; default: the run's own")
    add("--private", action="store_true", help="make the repository private when it is created")
    add("--revision", help="branch to upload to, created if needed; default: main")
    args = parser.parse_args()

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from mtl_diffusion.publishing.export import of_checkpoint, push_folder, write
    from mtl_diffusion.publishing.upload import UploadError

    with refusing(ValueError, OSError):
        metrics = json.loads(args.metrics.read_text()) if args.metrics else None
        trained = of_checkpoint(args.checkpoint)
        repository = args.hub_model_id or trained.config.repository
        folder = write(
            trained,
            args.output_dir,
            repository=repository,
            metrics=metrics,
            pictures=not args.no_pictures,
            half=args.half,
            max_shard_size=args.max_shard_size,
        )
    print(f"Step {trained.step} is in {folder}")
    if not args.push_to_hub:
        return
    private = args.private or trained.config.hub_private_repo
    where = {"checkpoint": args.checkpoint, "private": private, "revision": args.revision}
    try:
        address = push_folder(folder, repository, step=trained.step, **where)
    except UploadError as error:
        sys.exit(str(error))
    print(f"Published as {address}")
