"""`python scripts/train_classifier.py` is the command `mtl-diffusion train_classifier`."""

from mtl_diffusion.commands.train_classifier import main

if __name__ == "__main__":
    main()
