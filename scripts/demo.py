"""`python scripts/demo.py` is the command `mtl-diffusion demo`."""

from mtl_diffusion.commands.demo import main

if __name__ == "__main__":
    main()
