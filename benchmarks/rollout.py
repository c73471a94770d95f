"""Rollouts beside the stock environment and beside the limit: `python benchmarks/rollout.py --workers 2 --json`."""

import sys

from ript.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "rollout", *sys.argv[1:]]))
