"""Speed of a training step and of sampling, beside Euler's and Heun's methods.

    python scripts/benchmark.py --config configs/cifar10_cpu.yaml --json speed.json \\
        --pipeline runs/cifar10_cpu/pipeline

All other flags are those of scripts/train.py.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.tools import flags

PARTS = ("steps", "sampling")


def main() -> None:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    add("--steps", type=int, default=30, help="training steps")
    add("--warm", type=int, default=10, help="steps before, not timed")
    add("--pipeline", help="exported folder or name on the Hub; needed for sampling")
    add("--rounds", type=int, default=3, help="samplings of each solver")
    add("--sample_batch", type=int, default=16, help="images at once")
    add("--json", type=Path, help="file for all measurements")
    args, rest = parser.parse_known_args()
    if args.pipeline is None and "sampling" in args.parts:
        parser.error("sampling needs a --pipeline; or give --parts steps")
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
