"""`python -m ript` is the `ript` command."""

import os
import sys

from ript.cli.main import main
from ript.core.interpreter import folder

if __name__ == "__main__":
    # `python -m` looks for packages in the current folder first, and a file there may bear the name of one.
    here = folder()
    if (
        here
        and not sys.flags.safe_path
        and os.path.realpath(sys.path[0] or here) == os.path.realpath(here)
        and not os.path.isdir(os.path.join(here, "ript"))
    ):
        del sys.path[0]
    sys.exit(main())
