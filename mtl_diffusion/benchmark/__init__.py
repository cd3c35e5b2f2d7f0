"""How fast it is: side by side with diffusers' own training script and samplers, in one run.

scripts/benchmark.py is its command; docs/performance.md has what came out.
"""
