"""Packages that tests need."""

from importlib.util import find_spec

import pytest


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip tests where a package is missing.

    Nothing is imported, as `pytest.importorskip` would: robosuite loads MuJoCo, and then `ript` cannot choose the
    renderer any more, in all tests of the process.
    """
    missing = [name for name in names if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
