"""`python scripts/export.py` is the command `mtl-diffusion export`."""

from mtl_diffusion.commands.export import main

if __name__ == "__main__":
    main()
