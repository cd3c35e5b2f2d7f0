"""`accelerate launch -m mtl_diffusion.train --config FILE.yaml`: the command `train`.

The function `mtl_diffusion.train` is in loop.py.
"""

if __name__ == "__main__":
    from mtl_diffusion.commands.train import main

    main()
