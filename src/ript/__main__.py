"""`python -m ript` is the `ript` command."""

import sys

from ript.cli import main

if __name__ == "__main__":
    sys.exit(main())
