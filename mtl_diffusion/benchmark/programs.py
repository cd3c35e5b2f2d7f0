"""Training scripts as users start them, timed by their own TensorBoard files."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm.auto import trange

from .timing import measured


def race(commands: Sequence[str], rounds: int, warm: int) -> dict[str, str]:
    """Steps a second of training scripts, which take turns, and ratios to those of the first.

    Taking turns, they are slowed alike by whatever else the machine does.

    Args:
        commands: lines as a shell takes them, of scripts that log their learning rate to
            TensorBoard. `--output_dir` is appended: a temporary folder.
        warm: first steps, which are not timed.

    Raises:
        ValueError: a script failed, or logged too few steps.
    """
    turns = [
        [steps_a_second(command, warm) for command in commands]
        for _ in trange(rounds, desc="rounds")
    ]
    first, *others = zip(*turns, strict=True)
    found = {
        f"{i}, steps_per_second": measured(rates) for i, rates in enumerate((first, *others), 1)
    }
    for i, rates in enumerate(others, 2):
        ratios = (a / b for a, b in zip(first, rates, strict=True))
        found[f"1 is faster than {i}, times"] = measured(ratios)
    return found


def steps_a_second(command: str, warm: int) -> float:
    """Runs a script to its end; the rate from its log entry at `warm` steps to its last one."""
    times = {}  # step -> when its learning rate was logged, seconds since 1970
    with TemporaryDirectory() as folder:
        line = [*shlex.split(command), f"--output_dir={folder}"]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace")
        if done.returncode:
            end = (done.stdout + done.stderr)[-3000:]
            raise ValueError(f"{command} exited with {done.returncode}:\n{end}")
        for file in Path(folder).glob("**/events.out.tfevents.*"):
            events = EventAccumulator(str(file.parent)).Reload()
            # Ours has the first name, the scripts of diffusers have the second.
            for tag in {"learning_rate", "lr"}.intersection(events.Tags()["scalars"]):
                times |= {event.step: event.wall_time for event in events.Scalars(tag)}
    timed = sorted(step for step in times if step >= warm)
    if len(timed) < 2:
        raise ValueError(
            f"{command} logged its learning rate at {len(timed)} steps from step {warm} on, and "
            "two are needed: train for more steps, log more often, or give a lower --warm"
        )
    return (timed[-1] - timed[0]) / (times[timed[-1]] - times[timed[0]])
