"""What `mtl-diffusion NAME` and `scripts/NAME.py` run: a module NAME each, a parser and a call."""
