"""`python -m ript` is the `ript` command."""

import os
import sys

from ript.cli import main

if __name__ == "__main__":
    # `python -m` looks for packages in the current folder first, and a file there may bear the name of one.
    here = os.path.realpath(sys.path[0] or os.curdir)
    if (
        not sys.flags.safe_path
        and here == os.path.realpath(os.curdir)
        and not os.path.isdir(os.path.join(here, "ript"))
    ):
        del sys.path[0]
    sys.exit(main())
