"""Train: mtl-diffusion train --config configs/quickstart.yaml [--field value ...]

Exit codes: 0 finished; 2 refused before training; 75 stopped after a checkpoint, the same command
continues; 1 failed.
"""

import sys

from mtl_diffusion.launch.stop import REFUSED  # first: it records which process launched this one

# isort: split
from mtl_diffusion.config import ConfigError
from mtl_diffusion.config.command_line import parse


def main() -> None:
    try:
        config = parse()
    except ConfigError as error:
        refuse(error)

    # After parsing: torch takes seconds to import, and --help and mistakes need none of it.
    from mtl_diffusion.checkpoints.store import CheckpointError
    from mtl_diffusion.loop import train
    from mtl_diffusion.publishing.upload import UploadError

    try:
        train(config, ends_process=True)
    except (ConfigError, CheckpointError) as error:
        refuse(error)
    except UploadError as error:
        sys.exit(f"{error}\nThe pipeline is exported; the same command again uploads it.")


def refuse(error: ValueError) -> None:
    print(error, file=sys.stderr)
    sys.exit(REFUSED)
