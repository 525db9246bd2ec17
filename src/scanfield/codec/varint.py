"""Small integers as bytes, and the way back with suspicion: a reader never trusts a length it has not compared.

Unsigned numbers are LEB128: seven bits a byte, lowest first, the high bit says that more follow. Signed ones are folded
first: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
"""

from __future__ import annotations

from scanfield.errors import InputError

_MOST_BYTES = 9  # 63 bits


class Writer:
    """Bytes that grow."""

    def __init__(self) -> None:
        self.content = bytearray()

    def unsigned(self, value: int) -> None:
        """A number of at least 0, below 2^63."""
        if not 0 <= value < 2**63:
            raise ValueError(f"{value} is no unsigned 63-bit number")
        while value >= 128:
            self.content.append(value & 127 | 128)
            value >>= 7
        self.content.append(value)

    def signed(self, value: int) -> None:
        """A number of magnitude below 2^62."""
        self.unsigned(2 * value if value >= 0 else -2 * value - 1)

    def block(self, content: bytes) -> None:
        """Bytes whose number the reader knows."""
        self.content += content


class Reader:
    """Reads what a `Writer` wrote.

    Raises:
        InputError: in every method, if fewer bytes are left than asked for.
    """

    def __init__(self, content: bytes, where: str = "") -> None:
        self.content, self.where, self.at = content, where, 0

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self.content) - self.at

    def unsigned(self) -> int:
        """The next unsigned number."""
        value = 0
        for k in range(_MOST_BYTES):
            byte = self.block(1)[0]
            value |= (byte & 127) << (7 * k)
            if byte < 128:
                return value
        raise InputError("the file is damaged: a number in it has no end", where=self.where)

    def signed(self) -> int:
        """The next signed number."""
        value = self.unsigned()
        return -(value + 1) // 2 if value & 1 else value // 2

    def block(self, size: int) -> bytes:
        """The next `size` bytes."""
        if not 0 <= size <= self.left:
            raise InputError(
                f"the file is truncated or damaged: {size} bytes are expected where {self.left} are left",
                where=self.where,
            )
        self.at += size
        return self.content[self.at - size : self.at]

    def rest(self) -> bytes:
        """Everything that has not been read."""
        return self.block(self.left)
