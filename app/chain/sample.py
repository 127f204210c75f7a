"""A share of the answers, drawn by request id: whoever asks about an answer gets the same word."""

from zlib import crc32

_HASHES = 1 << 32


class Sample:
    """Draws."""

    def __init__(self, share: float = 0.0) -> None:
        """`share`: of all request ids, 0 to 1; what a smaller one takes, a larger one takes too."""
        self._below = int(share * _HASHES)

    def __bool__(self) -> bool:
        return self._below > 0

    def takes(self, request_id: str) -> bool:
        """Whether the answer to this request is in the share."""
        return self._below >= _HASHES or crc32(request_id.encode()) < self._below
