"""`python scripts/evaluate.py` is the command `mtl-diffusion evaluate`."""

from mtl_diffusion.commands.evaluate import main

if __name__ == "__main__":
    main()
