"""The commands `mtl-diffusion NAME`, which `scripts/NAME.py` call too: a parser and a call each."""
