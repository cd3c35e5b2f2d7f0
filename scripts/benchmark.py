"""Speed of training and sampling, beside diffusers' own script and solvers, in one run.

    python scripts/benchmark.py --config configs/cifar10_cpu.yaml --json speed.json \\
        --pipeline runs/cifar10_cpu/pipeline \\
        --diffusers path/to/diffusers --twin_python path/to/environment/bin/python

All other flags are those of scripts/train.py. The environment of --twin_python needs the
requirements of diffusers' examples/unconditional_image_generation.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.tools import flags

PARTS = ("training", "steps", "sampling")


def main() -> None:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    add("--rounds", type=int, default=3, help="measurements of each")
    add("--steps", type=int, default=40, help="training steps of a program")
    add("--warm", type=int, default=10, help="first steps, not timed")
    add("--diffusers", type=Path, help="checkout of diffusers; default: only ours is trained")
    add("--twin_python", type=Path, help="Python that runs diffusers' script")
    add("--pipeline", help="exported folder or name on the Hub; needed for sampling")
    add("--sample_batch", type=int, default=16, help="images at once")
    add("--json", type=Path, help="file for all measurements")
    args, rest = parser.parse_known_args()
    if (args.diffusers is None) != (args.twin_python is None):
        parser.error("--diffusers and --twin_python go together: give both, or neither")
    if not args.warm < args.steps:
        parser.error(f"--steps is {args.steps}; it must be more than --warm, {args.warm}")
    if args.pipeline is None and "sampling" in args.parts:
        parser.error("sampling needs a --pipeline; or name other --parts")
    with flags.refusals(), tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = parse(rest)

        # After parsing: torch takes seconds to import, and --help needs none of it.
        from mtl_diffusion.benchmark.report import measure, rows
        from mtl_diffusion.launch.host import choose_threads

        choose_threads(config.num_threads)
        found = measure(args, config, Path(folder))
    table = list(rows(found))
    width = max(len(name) for name, _ in table)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in table))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2, default=asdict) + "\n")


if __name__ == "__main__":
    main()
