"""``python -m experiments.cli``: the same as ``couponlab``."""

from experiments.cli import main

main()
