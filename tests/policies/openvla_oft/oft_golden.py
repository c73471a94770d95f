"""Where the reference numbers lie: see README.md beside them."""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
TINY = FOLDER / "tiny"
SCALE_HEAD = FOLDER / "tiny_ript" / "scale_header" / "TINY_scale_header.pth"
ADAPTER = FOLDER / "tiny_ript" / "openvla_lora_step_000010"


def arrays(name: str) -> dict[str, np.ndarray]:
    """Those of "io" or "pictures"."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def document(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())
