"""Train: python scripts/train.py --config configs/quickstart.yaml [--field value ...]"""

import sys

from mtl_diffusion.config import ConfigError, parse


def main() -> None:
    try:
        config = parse()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

    # After parsing: torch takes seconds to import, and --help and mistakes need none of it.
    from mtl_diffusion.train import train

    train(config)


if __name__ == "__main__":
    main()
