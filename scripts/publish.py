"""`python scripts/publish.py` is the command `mtl-diffusion publish`."""

from mtl_diffusion.commands.publish import main

if __name__ == "__main__":
    main()
