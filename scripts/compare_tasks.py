"""Do the tasks help each other? Trains them jointly and alone, and compares.

    python scripts/compare_tasks.py --preset smoke --output_dir runs/compare

Flags that are not listed here are those of scripts/train.py, and say what is compared: which tasks
in which proportions, on which data, for how many steps. Every run is trained by scripts/train.py in
a folder below output_dir/runs; run again, finished ones are reused and an interrupted one goes on.
Writes comparison.json, comparison.md, loss_gap.png and gradient_cosines.png.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from mtl_diffusion.comparison.arms import (
    AGGREGATIONS,
    LOSS_WEIGHTINGS,
    configure,
    images_of_a_task,
    plan,
)
from mtl_diffusion.config import ConfigError, TrainConfig, to_dict
from mtl_diffusion.config.command_line import parse as parse_run

ROOT = Path(__file__).parents[1]
SMOKE = (
    *("--config", str(ROOT / "configs/quickstart.yaml"), "--max_train_steps", "150"),
    *("--validation_images", "8", "--report_to", "none"),
)


def parse() -> tuple[argparse.Namespace, TrainConfig]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output_dir", required=True, help="for the runs, the tables and the plots")
    add("--preset", choices=["smoke"], help="smoke: the quickstart's model for 150 steps; minutes")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    add(
        "--weightings",
        nargs="+",
        choices=[*LOSS_WEIGHTINGS, *AGGREGATIONS],
        help="of the joint model, compared; the first is that of the tasks alone, too. Of losses"
        " (uncertainty, sum, fixed), or of gradients, through torchjd. Default: the run's own",
    )
    add("--subsets", action="store_true", help="all subsets of the tasks, not only each alone")
    add("--num_images", type=int, default=1000, help="held-out images; default: %(default)s")
    add("--gradient_batch_size", type=int, default=64, help="default: %(default)s")
    add("--gradient_batches", type=int, default=4, help="default: %(default)s")
    add(
        "--take",
        nargs="+",
        default=[],
        metavar="RUN=DIR",
        help="output_dir of a finished run to take in place of training RUN, named as in"
        " output_dir/runs; it must have the same configuration",
    )
    add(
        "--metrics",
        default="scores/metrics.json",
        help="scripts/evaluate.py's file below a run's folder, compared where all runs have it;"
        " default: %(default)s",
    )
    add(
        "--launcher",
        default=sys.executable,
        help='what starts scripts/train.py, such as "accelerate launch"; default: this Python',
    )
    args, rest = parser.parse_known_args()
    base = parse_run([*(SMOKE if args.preset == "smoke" else ()), *rest])
    if len(base.shares) < 2:
        raise ValueError(f"tasks: found {', '.join(base.shares)}; a comparison needs two or more")
    if base.max_train_steps is None:
        raise ValueError("max_train_steps: found null; runs that are compared need so many steps")
    if base.push_to_hub or base.pretrained_model_name_or_path is not None:
        raise ValueError("the runs of a comparison start from nothing and are not published")
    own = base.gradient_aggregation if base.gradient_aggregation != "sum" else base.task_weighting
    args.weightings = args.weightings or [own]
    return args, base


def main() -> None:
    try:
        args, base = parse()
    except ConfigError as error:
        sys.exit(str(error))
    except ValueError as error:
        sys.exit(f"compare_tasks.py: {error}")

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from mtl_diffusion.comparison.launch import Stopped

    try:
        compare(args, base)
    except (Stopped, ValueError, RuntimeError) as error:
        sys.exit(f"compare_tasks.py: {error}")


def compare(args: argparse.Namespace, base: TrainConfig) -> None:
    import torch
    from tqdm.auto import tqdm

    from mtl_diffusion.comparison import measure
    from mtl_diffusion.comparison.launch import ensure_trained
    from mtl_diffusion.comparison.report import loss_gap, plain, rows_of, table
    from mtl_diffusion.data.images import load_split

    folder = Path(args.output_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(base.num_threads or torch.get_num_threads())
    arms = plan(tuple(base.shares), args.weightings, args.subsets)
    data = load_split(base, "validation_split", base.resolution)
    folders = {
        arm.run(seed): folder / "runs" / arm.run(seed) for arm in arms for seed in args.seeds
    }
    folders |= taken(args.take, folders)
    command = [*shlex.split(args.launcher), str(ROOT / "scripts/train.py")]
    losses, scores = {}, {}
    runs = [(arm, seed) for seed in args.seeds for arm in arms]
    for arm, seed in tqdm(runs, desc="Runs", unit="run"):
        where = folders[arm.run(seed)]
        pipeline = ensure_trained(configure(arm, base, seed, where), command)
        found = measure.losses(pipeline, arm.tasks, data, args.num_images, device)
        losses[arm, seed] = found
        scores[arm, seed] = measure.loss_scores(found, min(args.num_images, len(data)))
        if (file := where / args.metrics).exists():
            metrics = json.loads(file.read_text())
            more = measure.metric_scores(metrics, measure.METRICS, arm.tasks)
            for task in arm.tasks:
                scores[arm, seed][task] |= more[task]

    joint, first = arms[0], args.weightings[0]
    rows = rows_of(arms, scores)
    gaps = {budget: loss_gap(joint, budget, first, losses) for budget in ("per-task", "total")}
    cosines = gradients(
        args, [folders[joint.run(seed)] for seed in args.seeds], joint, data, device
    )
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "base": to_dict(base),
        "seeds": args.seeds,
        "dataset_fingerprint": data.fingerprint,
        "num_images": min(args.num_images, len(data)),
        "images_of_a_task": {
            arm.name: images_of_a_task(configure(arm, base, 0, folder)) for arm in arms
        },
        "scores": {arm.run(seed): as_json(found) for (arm, seed), found in scores.items()},
        "losses": {arm.run(seed): found for (arm, seed), found in losses.items()},
        "changes": {f"{arm.name} against {budget}": found for arm, budget, found in rows},
        "loss_gap": gaps,
        "gradient_cosines": cosines,
    }
    (folder / "comparison.json").write_text(json.dumps(plain(report), indent=2) + "\n")
    text = table(rows, joint.tasks)
    (folder / "comparison.md").write_text(text)
    plot(gaps, cosines, folder)
    print(f"\n{text}\n{len(args.seeds)} seeds; positive is better. Written to {folder}")


def taken(pairs: list[str], folders: dict[str, Path]) -> dict[str, Path]:
    """RUN=DIR, read."""
    found = {}
    for pair in pairs:
        name, _, place = pair.partition("=")
        if name not in folders or not Path(place).is_dir():
            raise ValueError(
                f"take: found {pair}; it must be RUN=DIR with a folder that is there, and a RUN of "
                f"{', '.join(folders)}"
            )
        found[name] = Path(place)
    return found


def as_json(scores: dict) -> dict:
    return {
        task: {metric: {"value": score.value, "n": score.n} for metric, score in found.items()}
        for task, found in scores.items()
    }


def gradients(args: argparse.Namespace, folders: list[Path], joint, data, device: str) -> dict:
    """The cosines of the joint models' gradients: mean over batches, then spread over seeds."""
    from mtl_diffusion.comparison.gradients import gradient_cosines
    from mtl_diffusion.comparison.report import Spread
    from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
    from mtl_diffusion.publishing.export import PIPELINE

    found = []
    for folder in folders:
        pipe = MultiTaskPipeline.from_pretrained(folder / PIPELINE).to(device)
        found.append(
            gradient_cosines(
                pipe,
                [TASKS[task] for task in joint.tasks],
                data.relabelled(pipe.class_names),
                args.gradient_batch_size,
                args.gradient_batches,
            )
        )
    pairs = {}
    for i, task in enumerate(joint.tasks):
        for j, other in enumerate(joint.tasks[i:], i):
            values = [
                each.repeated[:, :, i].mean(0) if i == j else each.between[:, :, i, j].mean(0)
                for each in found
            ]
            name = f"{task}, other images" if i == j else f"{task}, {other}"
            pairs[name] = {
                level: Spread.of([value[k].item() for value in values])
                for k, level in enumerate(found[0].levels)
            }
    return {
        "images_of_a_batch": args.gradient_batch_size,
        "batches": args.gradient_batches,
        "pairs": pairs,
    }


def plot(gaps: dict, cosines: dict, folder: Path) -> None:
    import numpy as np

    from mtl_diffusion.pictures.task_plots import diverging

    def panel(tables: dict, scale: float) -> tuple:
        spreads = [list(levels.values()) for levels in tables.values()]
        return tuple(
            scale * np.array([[getattr(s, what) for s in row] for row in spreads])
            for what in ("mean", "std")
        )

    titles = {"per-task": "alone: equal images per task", "total": "alone: equal images in total"}
    diverging(
        {titles[budget]: panel(gap, 100) for budget, gap in gaps.items()},
        list(gaps["total"]),
        list(next(iter(gaps["total"].values()))),
        "more loss jointly than alone, %",
        folder / "loss_gap.png",
        written="{:+.1f}",
    )
    pairs = cosines["pairs"]
    diverging(
        {"cosine of the tasks' gradients in the joint model": panel(pairs, 1)},
        list(pairs),
        list(next(iter(pairs.values()))),
        "cosine",
        folder / "gradient_cosines.png",
        limit=1.0,
    )


if __name__ == "__main__":
    main()
