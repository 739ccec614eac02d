"""Audio vectors of clips that were encoded before, by the hash of their samples."""

from collections import OrderedDict

from torch import Tensor

CACHE_BYTES = 2 << 30


class AudioCache:
    """Vectors (W, D) by clip; the least recently used entries are dropped first.

    ``num_encoded`` counts clips that ran through the encoders, ``num_hits`` cache hits.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_encoded = 0
        self.num_hits = 0
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
        self._state: object = None

    def expect(self, state: object) -> None:
        """Clear the cache if ``state``, which identifies the projector's weights, differs from the last call's."""
        if state != self._state:
            self.clear()
            self._state = state

    def get(self, key: str) -> Tensor | None:
        if (vectors := self._vectors.get(key)) is not None:
            self._vectors.move_to_end(key)
            self.num_hits += 1
        return vectors

    def put(self, key: str, vectors: Tensor) -> None:
        """Store vectors. A single clip above the limit stays until the next one is stored."""
        self.num_encoded += 1
        self._vectors[key] = vectors
        self.num_bytes += vectors.nbytes
        while self.num_bytes > self.max_bytes and len(self._vectors) > 1:
            self.num_bytes -= self._vectors.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Drop all vectors; the counters keep their values."""
        self._vectors.clear()
        self.num_bytes = 0
