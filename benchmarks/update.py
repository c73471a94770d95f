"""Where the time of a post-training iteration goes: `python benchmarks/update.py --json`."""

import sys

from ript.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "update", *sys.argv[1:]]))
