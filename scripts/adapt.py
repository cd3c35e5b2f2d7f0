"""How fast is something new learned from a trained model? A task, a class or a dataset.

    python scripts/adapt.py --preset smoke --new task colorize --output_dir runs/adapt

Trains a model of the old (or takes --pipeline), then the new from it with train_only tokens,
tokens+condition and all, and from nothing: the new alone, and jointly with the old. Every step sees
as many samples of the new in each. Flags that are not listed here are those of scripts/train.py.
Writes adaptation.json, adaptation.md and adaptation.png: the held-out loss of the new per step, and
of the old, which may be forgotten. Run again, finished runs are reused.
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from mtl_diffusion.config import ConfigError, TrainConfig, to_dict
from mtl_diffusion.config.command_line import parse as parse_run

ROOT = Path(__file__).parents[1]
SMOKE = (
    *("--config", str(ROOT / "configs/quickstart.yaml"), "--max_train_steps", "100"),
    *("--validation_images", "8", "--report_to", "none"),
)


def parse() -> tuple[argparse.Namespace, TrainConfig]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--new",
        nargs=2,
        required=True,
        metavar=("KIND", "NAME"),
        help="task NAME; class NAME, which the old data is left without; or dataset NAME",
    )
    add("--output_dir", required=True, help="for the runs, the tables and the plot")
    add("--preset", choices=["smoke"], help="smoke: the quickstart's model for 100 steps; minutes")
    add("--pipeline", help="a trained model of the old; default: one is trained for each seed")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    add("--points", type=int, default=5, help="points on a curve; default: %(default)s")
    add("--num_images", type=int, default=128, help="held-out images; default: %(default)s")
    add(
        "--launcher",
        default=sys.executable,
        help='what starts scripts/train.py, such as "accelerate launch"; default: this Python',
    )
    args, rest = parser.parse_known_args()
    base = parse_run([*(SMOKE if args.preset == "smoke" else ()), *rest])
    if base.max_train_steps is None:
        parser.error("max_train_steps: found null; runs that are compared need so many steps")
    every = max(1, base.max_train_steps // args.points)
    return args, replace(base, checkpointing_steps=every)


def main() -> None:
    try:
        args, base = parse()
    except ConfigError as error:
        sys.exit(str(error))

    # After parsing: torch takes seconds to import, and --help needs none of it.
    from mtl_diffusion.comparison.launch import Stopped

    try:
        adapt(args, base)
    except (Stopped, ValueError, RuntimeError) as error:
        sys.exit(f"adapt.py: {error}")


def adapt(args: argparse.Namespace, base: TrainConfig) -> None:
    import torch
    from tqdm.auto import tqdm

    from mtl_diffusion.comparison import adaptation
    from mtl_diffusion.comparison.launch import ensure_trained
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

    kind, name = args.new
    if kind not in adaptation.KINDS:
        raise ValueError(f"new: found {kind}; it must be one of {', '.join(adaptation.KINDS)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(base.num_threads or torch.get_num_threads())
    folder = Path(args.output_dir)
    given = adaptation.novelty(kind, name, base, folder / "data")
    held_out = {"new": given.new.load(base), "old": given.old.load(base)}
    parts = {"new": given.new, "old": given.old}
    command = [*shlex.split(args.launcher), str(ROOT / "scripts/train.py")]
    ways = [*adaptation.FROM_OLD, *adaptation.FROM_NOTHING]

    def measure(pipe) -> dict[str, float | None]:
        pipe = pipe.to(device)
        return {
            word: adaptation.loss(pipe, part, held_out[word], args.num_images, device)
            for word, part in parts.items()
        }

    curves = {way: [] for way in ways}  # a seed each: step -> {"new", "old"}
    before = []
    with tqdm(total=len(args.seeds) * len(ways), desc="Ways", unit="run") as progress:
        for seed in args.seeds:
            runs = folder / "runs"
            pretrained = Path(args.pipeline) if args.pipeline else None
            if pretrained is None:
                where = runs / f"old.seed{seed}"
                config = adaptation.configure("old", given, base, seed, where, None)
                pretrained = ensure_trained(config, command)
            old = MultiTaskPipeline.from_pretrained(pretrained)
            start = measure(adaptation.with_words_for(old, given.new, held_out["new"]))
            before.append(start)
            for way in ways:
                where = runs / f"{way}.seed{seed}"
                config = adaptation.configure(way, given, base, seed, where, pretrained)
                ensure_trained(config, command)
                curve = {0: start} if way in adaptation.FROM_OLD else {}
                curves[way].append(curve | curve_of(where, measure))
                progress.update()
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "new": {"kind": kind, "name": name, "share_of_both": given.share},
        "base": to_dict(base),
        "seeds": args.seeds,
        "num_images": {w: min(args.num_images, len(data)) for w, data in held_out.items()},
        "before": before,
        "curves": curves,
    }
    (folder / "adaptation.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(curves, before)
    (folder / "adaptation.md").write_text(text)
    plot(curves, before, name, folder / "adaptation.png")
    print(f"\n{text}\n{len(args.seeds)} seeds. Written to {folder}")


def curve_of(run: Path, measure) -> dict[int, dict[str, float | None]]:
    """Step -> the losses of its checkpoint, of every checkpoint of a run; kept beside them."""
    from mtl_diffusion.publishing.export import of_checkpoint

    kept = run / "curve.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    for path in (run / "checkpoints").glob("step-*"):
        step = path.name.removeprefix("step-")
        if step not in known:
            known[step] = measure(of_checkpoint(path).pipeline)
            kept.write_text(json.dumps(known) + "\n")
    return {int(step): known[step] for step in sorted(known, key=int)}


def table(curves: dict, before: list[dict]) -> str:
    """Markdown: the losses at the end of each way, and at the step where it is first as good as the
    joint model is at its end."""
    from mtl_diffusion.comparison.report import Spread, percent

    joint = [max(curve.items())[1]["new"] for curve in curves["joint"]]
    lines = [
        "| from | trained | loss of the new | as good as joint at step | old: more loss |",
        "|---|---|---|---|---|",
    ]
    for way, found in curves.items():
        ends = [max(curve.items())[1] for curve in found]
        new = Spread.of([end["new"] for end in ends])
        reached = [
            next((str(step) for step, e in curve.items() if e["new"] <= goal), "never")
            for curve, goal in zip(found, joint, strict=True)
        ]
        forgotten = ""
        if all(end["old"] is not None for end in ends):
            pairs = zip(ends, before, strict=True)
            forgotten = percent(Spread.of([end["old"] / b["old"] - 1 for end, b in pairs]))
        source, what = ("the old", way) if 0 in found[0] else ("nothing", f"all, {way}")
        lines.append(
            f"| {source} | {what} | {new.mean:.4f} ± {new.std:.4f} | {', '.join(reached)} | "
            f"{forgotten} |"
        )
    return "\n".join(lines) + "\n"


def plot(curves: dict, before: list[dict], name: str, path: Path) -> None:
    import numpy as np

    from mtl_diffusion.pictures.task_plots import spread_curves

    def lines(word: str) -> dict:
        return {
            way: (list(found[0]), np.array([[e[word] for e in c.values()] for c in found]))
            for way, found in curves.items()
            if found[0][max(found[0])][word] is not None
        }

    spread_curves(
        {f"new: {name}": lines("new"), "old": lines("old")},
        "step",
        "held-out loss",
        path,
        {"old": ("before", float(np.mean([start["old"] for start in before])))},
    )


if __name__ == "__main__":
    main()
