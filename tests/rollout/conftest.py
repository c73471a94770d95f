"""Makes `tests.fakes` importable here and, through the inherited path, in worker processes."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
