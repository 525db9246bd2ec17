"""A short JSON text <-> bytes: frequent pieces become one symbol, all symbols are coded with one table.

Headers are a few hundred characters, which general compressors hardly shrink, and whose output differs between their
versions. Here the alphabet is the 256 bytes of UTF-8 and the pieces below (the longest that fits is taken), and the
frequencies are written out. Both belong to the container's schema and never change within it.
"""

from __future__ import annotations

import numpy as np

from scanfield.codec import rans
from scanfield.codec.varint import Reader, Writer
from scanfield.errors import InputError

_PIECES = (
    '{"method":"', '","config":{"', '},"spec":{"domain":{"axes":[["x","mm",', ',"scaling":"isotropic","frame":[[',
    '],["y","mm",', '],["z","mm",', '"per-axis"', '"isotropic"', '},"grid":{"shape":[', '],"affine":[[',
    ',[0.0,0.0,0.0,1.0]]', '},"unit":"', '"arbitrary"', '"HU"', '"Gy"', '"1/mm"', ',"scale":', ',"facts":{',
    '"weights_seed":', '"offset":', '"channels":', '"facts":', '"dtype":"', "uint8", "uint16", "int16", "float32",
    '"shape":[', '"tensors":', '"low":', '"high":', '"blocks":', '"size":', '"voxels":', '"schema":',
    "width", "hidden", "layers", "omega", "steps", "learning_rate", "points", "weight", "activation", "first_",
    "true", "false", "null", '"sine"', '"relu"', '":"', '","', '":', ',"', '":{"', '"},"', "],[", "]],", "[[", "}}",
    "0.0", "-0.0", "1.0", "-1.0", ".0,", ".5,", ",0.0", "000", "e-0", "e-1", "ing", "tion", "er", "in", "re", "on",
    "at", "en", "es", "or", "an", "ar", "ti", "te", "st", "al", "_", "mm",
)  # fmt: skip
_PIECE_BYTES = [piece.encode() for piece in _PIECES]
_LONGEST_FIRST = sorted(range(len(_PIECES)), key=lambda k: (-len(_PIECE_BYTES[k]), k))
_MOST_SYMBOLS = 2**22


def _table() -> rans.Table:
    weight = np.ones(256 + len(_PIECES), dtype=np.int64)
    weight[256:] = 60
    for characters, often in (("0123456789", 500), (".,-", 250), ('"[]{}:', 60), ("abcdefghijklmnopqrstuvwxyz", 60)):
        for character in characters:
            weight[ord(character)] = often
    counts = 1 + weight * (rans.TOTAL - len(weight)) // weight.sum()
    counts[ord("0")] += rans.TOTAL - counts.sum()
    return rans.Table(0, counts)


def compress_text(text: str) -> bytes:
    """The bytes of a text: the number of its symbols, then the symbols."""
    content, symbols, at = text.encode(), [], 0
    while at < len(content):
        piece = next((k for k in _LONGEST_FIRST if content.startswith(_PIECE_BYTES[k], at)), None)
        symbols.append(content[at] if piece is None else 256 + piece)
        at += 1 if piece is None else len(_PIECE_BYTES[piece])
    out = Writer()
    out.unsigned(len(symbols))
    out.block(rans.encode(np.array(symbols, dtype=np.int64), [_table()]))
    return bytes(out.content)


def expand_text(content: bytes, *, where: str = "") -> str:
    """The text of `compress_text`.

    Raises:
        InputError: the bytes are truncated or were altered.
    """
    source = Reader(content, where)
    count = source.unsigned()
    if count > min(8 * len(content), _MOST_SYMBOLS):  # a symbol costs more than a bit
        raise InputError(f"the file is damaged: its header promises {count} symbols", where=where)
    symbols = rans.decode(source.rest(), count, [_table()], where=where)
    try:
        return b"".join(bytes([s]) if s < 256 else _PIECE_BYTES[s - 256] for s in symbols.tolist()).decode()
    except UnicodeDecodeError:
        raise InputError("the file is damaged: its header is no text", where=where) from None
