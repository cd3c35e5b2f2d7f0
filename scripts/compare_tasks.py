"""Compare runs that differ in a few fields, such as the tasks that are trained together.

    python scripts/compare_tasks.py --config configs/quickstart.yaml --max_train_steps 150 \\
        --arms configs/comparisons/alone.yaml --seeds 0 1 --report_to none \\
        --output_dir runs/compare

--arms is a YAML file with a line for each arm, name: {field: value}; configs/comparisons has some.
All other flags are those of scripts/train.py and hold for every arm. Each task is compared with the
first arm that has it. Finished runs, in output_dir/runs, are not trained again, and interrupted
ones are continued. Writes comparison.json and comparison.md. ± is the standard
deviation over the seeds.

--evaluate "--preset smoke --classifier runs/judge" adds the figures of the scorecard.
"""

import shlex
import sys
from pathlib import Path

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.tools import flags


def main() -> None:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add(parser, "output_dir")
    add("--arms", type=flags.path, required=True, help="YAML file of the runs to compare")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="runs of each arm")
    add("--num_images", type=int, default=1000, help="held-out images")
    add("--evaluate", type=shlex.split, help="run scripts/evaluate.py on each, with these flags")
    args, rest = parser.parse_known_args()
    train = [sys.executable, str(Path(__file__).with_name("train.py"))]
    evaluate = [sys.executable, str(Path(__file__).with_name("evaluate.py"))]
    with flags.refusals():
        base = parse(rest)

        # After parsing: torch takes seconds to import, and --help needs none of it.
        from mtl_diffusion.comparison.arms import read_arms
        from mtl_diffusion.comparison.compare import compare

        try:
            tables = compare(
                *(read_arms(args.arms), base, args.seeds, args.output_dir, args.num_images, train),
                None if args.evaluate is None else [*evaluate, *args.evaluate],
            )
        except RuntimeError as error:
            sys.exit(f"compare_tasks: {error}")
    print(f"\n{tables}\n{len(args.seeds)} seeds. Written to {args.output_dir}")


if __name__ == "__main__":
    main()
