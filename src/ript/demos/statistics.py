"""Statistics of demonstrations; they are saved with the policy, which normalises its inputs with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ript.core.errors import DataError
from ript.demos.windows import Windows

SMALLEST_STD = 1e-3
"""Dimensions that hardly move are divided by this at least (metres, radians): noise is not blown up to signal."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Of all windows of the demonstrations that a policy was trained on.

    Attributes:
        proprio_mean, proprio_std: float32 `[P]`; std at least `SMALLEST_STD`.
        privileged_mean, privileged_std: float32 `[O]`, or None without privileged state.
        action_min, action_max: float32 `[A]`, of the clean actions.
        windows: windows counted.
        steps: environment steps counted.
        fingerprint: which demonstrations, see `Windows.fingerprint`.
    """

    proprio_mean: np.ndarray
    proprio_std: np.ndarray
    privileged_mean: np.ndarray | None
    privileged_std: np.ndarray | None
    action_min: np.ndarray
    action_max: np.ndarray
    windows: int
    steps: int
    fingerprint: str

    @staticmethod
    def of(windows: Windows) -> Statistics:
        """Measure them."""
        proprio_mean, proprio_std = _moments(windows.proprio)
        privileged = windows.privileged
        privileged_mean, privileged_std = (None, None) if privileged is None else _moments(privileged)
        return Statistics(
            proprio_mean=proprio_mean,
            proprio_std=proprio_std,
            privileged_mean=privileged_mean,
            privileged_std=privileged_std,
            action_min=windows.actions.min(0),
            action_max=windows.actions.max(0),
            windows=len(windows),
            steps=len(windows.actions),
            fingerprint=windows.fingerprint,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives back the same numbers to the last bit."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_json`.

        Raises:
            DataError: fields are missing or unknown, or hold something else than finite numbers.
        """
        names = {field.name for field in fields(Statistics)}
        if set(values) != names:
            raise DataError(f"statistics: expected the fields {sorted(names)}, got {sorted(values)}")
        try:
            read: dict[str, Any] = {k: np.array(v, np.float32) if isinstance(v, list) else v for k, v in values.items()}
        except ValueError as error:
            raise DataError(f"statistics: {error}; expected lists of numbers") from error
        for name, value in read.items():
            if isinstance(value, np.ndarray) and not (value.ndim == 1 and np.isfinite(value).all()):
                raise DataError(f"statistics: {name} = {values[name]}; expected a list of finite numbers")
        return Statistics(**read)


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and guarded standard deviation over rows, float32, accumulated in float64."""
    std = np.maximum(values.std(0, dtype=np.float64), SMALLEST_STD)
    return values.mean(0, dtype=np.float64).astype(np.float32), std.astype(np.float32)
