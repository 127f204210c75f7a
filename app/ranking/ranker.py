"""The Protocol of a ranker: features of R candidates in, R scores out."""

from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray


class Ranker(Protocol):
    """Scores candidates; a higher score ranks earlier. Knows nothing of users or items, only of features."""

    kind: ClassVar[str]
    feature_names: tuple[str, ...]

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (R, F) in the order of `feature_names` -> float32 (R,), finite."""
        ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...
