"""`python scripts/sample.py` is the command `mtl-diffusion sample`."""

from mtl_diffusion.commands.sample import main

if __name__ == "__main__":
    main()
