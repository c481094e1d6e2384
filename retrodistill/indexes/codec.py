"""What every codec of token vectors can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Codec(ABC):
    """Turns (n, d) float32 vectors into (n, bytes) uint8 codes and back; the same code for a vector in any company.

    Attributes:
        kind: Its name in settings.
        dimension: d.
        bytes_per_vector: Width of a code.
        unit: Whether decoded vectors are given length 1, as the vectors had that it was fitted on.
    """

    kind: str
    dimension: int
    bytes_per_vector: int
    unit: bool = False

    @abstractmethod
    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, bytes) uint8 codes of (n, d) float32 vectors."""

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(n, d) float32 vectors, as near as the codec keeps them."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What was fitted."""
        return {}

    @property
    def own_bytes(self) -> int:
        """Bytes of all that was fitted."""
        return sum(array.nbytes for array in self.arrays().values())


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(n, d) vectors at length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
