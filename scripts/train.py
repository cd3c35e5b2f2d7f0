"""`python scripts/train.py` is the command `mtl-diffusion train`."""

from mtl_diffusion.commands.train import main

if __name__ == "__main__":
    main()
