"""Many short strings as two arrays, so that workers share them and no string takes a Python
object."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class TextTable:
    """An immutable sequence of strings.

    Args:
        texts: the strings, taken one by one.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        blob = bytearray()
        ends = [0]
        for text in texts:
            blob += text.encode("utf-8", "surrogatepass")
            ends.append(len(blob))
        self._blob = np.frombuffer(bytes(blob), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)

    @classmethod
    def of_arrays(cls, blob: np.ndarray, ends: np.ndarray) -> TextTable:
        """The strings whose UTF-8 bytes are joined in `blob`, uint8; string i is
        `ends[i]` to `ends[i + 1]`. Both may be mapped into memory."""
        table = cls(())
        table._blob, table._ends = blob, ends
        return table

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, stop = self._ends[index % len(self) :][:2].tolist()
        return self._blob[start:stop].tobytes().decode("utf-8", "surrogatepass")

    def slice(self, start: int, stop: int) -> list[str]:
        """The strings from one position to another."""
        return [self[index] for index in range(start, stop)]

    def digest(self) -> str:
        """Digest of all strings and their borders."""
        import hashlib

        return hashlib.blake2b(
            self._blob.tobytes() + self._ends.tobytes(), digest_size=16
        ).hexdigest()
