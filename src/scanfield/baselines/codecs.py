"""The rivals of a compressed volume: standard codecs at the same number of bytes.

    SPERR       3-D wavelets (Li, Lindstrom & Clyne 2023), by bits a voxel
    SZ3         3-D interpolation with an error bound (Liang et al. 2023)
    ZFP         4x4x4 block transform (Lindstrom 2014), by tolerance
    JPEG 2000   wavelets, slices side by side in one image, 16 bits
    JPEG XL     the same image

Every codec has one parameter, which is searched for the largest file that is not larger than asked for. The image
codecs get the volume's range spread over 16 bits. Bytes that a file of the codec's own would need besides (sizes,
range) are counted: `SIDE_BYTES`. All of them come with the package imagecodecs.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from scanfield.errors import InputError, MissingExtra

SIDE_BYTES = 16  # three sizes and the range of the values
_STEPS = 14  # of the search: the parameter to a part in ten thousand of its range


@dataclass(frozen=True)
class Codec:
    """A rival.

    Args:
        label: for tables.
        note: what it is, in one sentence.
        encode: (package, volume, parameter) -> bytes.
        decode: (package, bytes, volume's shape) -> volume.
        coarsest, finest: ends of the parameter's range for a volume of range 1 with few and with many bytes.
        spread: the codec sees whole numbers 0..65535 instead of values.
    """

    label: str
    note: str
    encode: Callable[[Any, np.ndarray, float], bytes]
    decode: Callable[[Any, bytes, tuple[int, int, int]], np.ndarray]
    coarsest: float
    finest: float
    spread: bool = False


@dataclass(frozen=True, eq=False)
class Coded:
    """What a codec made of a volume.

    Args:
        values: the decoded volume.
        size: bytes, side information included.
        encode_s, decode_s: seconds of one call each, without the search.
    """

    values: Float[np.ndarray, "n0 n1 n2"]
    size: int
    encode_s: float
    decode_s: float


def code(name: str, values: Shaped[np.ndarray, "n0 n1 n2"], max_bytes: int) -> Coded:
    """The volume after a codec that may use `max_bytes`.

    Args:
        name: one of `CODECS`.

    Raises:
        InputError: the codec cannot make a file so small, or the volume is constant; imagecodecs is not installed.
    """
    codec, package = CODECS[name], imagecodecs()
    volume = np.ascontiguousarray(values, dtype=np.float64)
    low, span = float(volume.min()), float(np.ptp(volume))
    if span == 0:
        raise InputError("the volume is constant: there is nothing to compress")
    unit = (volume - low) / span
    source = np.rint(65535 * unit).astype(np.uint16) if codec.spread else unit.astype(np.float32)

    best: tuple[float, bytes] | None = None
    fine, coarse = math.log(codec.finest), math.log(codec.coarsest)
    at = [coarse, fine, *[math.nan] * _STEPS]
    for k in range(len(at)):
        parameter = math.exp(at[k] if k < 2 else (coarse + fine) / 2)
        try:
            payload = codec.encode(package, source, parameter)
        except RuntimeError:
            payload = b""  # a parameter that the codec does not take
        fits = bool(payload) and len(payload) + SIDE_BYTES <= max_bytes
        if fits and (best is None or len(payload) > len(best[1])):
            best = parameter, payload
        if k >= 2:
            coarse, fine = ((coarse + fine) / 2, fine) if fits else (coarse, (coarse + fine) / 2)
        elif k == 0 and not fits:
            raise InputError(f"{codec.label} cannot make a file of {max_bytes} bytes of this volume")
        elif k == 1 and fits:
            break
    assert best is not None
    start = time.perf_counter()
    payload = codec.encode(package, source, best[0])
    middle = time.perf_counter()
    decoded = codec.decode(package, payload, source.shape).astype(np.float64)
    stop = time.perf_counter()
    decoded = low + span * (decoded / 65535 if codec.spread else decoded)
    return Coded(decoded, len(payload) + SIDE_BYTES, middle - start, stop - middle)


def imagecodecs() -> Any:
    """The package with all codecs.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("imagecodecs")
    except ImportError:
        raise MissingExtra("imagecodecs", "codec", "comparing with standard codecs") from None


def mosaic(volume: Shaped[np.ndarray, "n0 n1 n2"]) -> Shaped[np.ndarray, "rows columns"]:
    """All slices along the third axis side by side, as square as they give; empty places repeat the last one."""
    n0, n1, n2 = volume.shape
    across = max(1, round(math.sqrt(n2 * n0 / n1)))
    down = -(-n2 // across)
    order = np.minimum(np.arange(down * across), n2 - 1)
    tiles = volume[:, :, order].reshape(n0, n1, down, across)
    return np.ascontiguousarray(tiles.transpose(2, 0, 3, 1).reshape(down * n0, across * n1))


def unmosaic(image: Shaped[np.ndarray, "rows columns"], shape: tuple[int, int, int]) -> Shaped[np.ndarray, "n0 n1 n2"]:
    """The volume of `shape` that `mosaic` spread out."""
    n0, n1, n2 = shape
    down, across = image.shape[0] // n0, image.shape[1] // n1
    return image.reshape(down, n0, across, n1).transpose(1, 3, 0, 2).reshape(n0, n1, down * across)[:, :, :n2]


def _sperr(package: Any, volume: np.ndarray, bits: float) -> bytes:
    return bytes(package.sperr_encode(_flat(volume), level=bits, mode=package.SPERR.MODE.BPP))


def _flat(volume: np.ndarray) -> np.ndarray:
    """A slice as an image of two axes."""
    return volume[:, :, 0] if volume.shape[2] == 1 else volume


def _volume(name: str) -> Callable[[Any, bytes, tuple[int, int, int]], np.ndarray]:
    def decode(package: Any, payload: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        flat = shape[:2] if shape[2] == 1 else shape
        needed = {"shape": flat, "dtype": np.float32} if name == "sz3_decode" else {}
        return np.asarray(getattr(package, name)(payload, **needed)).reshape(shape)

    return decode


def _picture(name: str) -> Callable[[Any, bytes, tuple[int, int, int]], np.ndarray]:
    return lambda package, payload, shape: unmosaic(np.asarray(getattr(package, name)(payload)), shape)


CODECS: dict[str, Codec] = {
    "sperr": Codec("SPERR", "Three-dimensional wavelets.", _sperr, _volume("sperr_decode"), 1e-3, 32.0),
    "sz3": Codec(
        "SZ3",
        "Interpolation with an error bound.",
        lambda package, volume, bound: bytes(package.sz3_encode(_flat(volume), mode=package.SZ3.MODE.ABS, abs=bound)),
        _volume("sz3_decode"),
        0.9,
        1e-6,
    ),
    "jpeg2000": Codec(
        "JPEG 2000",
        "Wavelets on the slices, side by side in one image.",
        lambda package, volume, level: bytes(package.jpeg2k_encode(mosaic(volume), level=level, codecformat="j2k")),
        _picture("jpeg2k_decode"),
        3.0,
        150.0,
        spread=True,
    ),
    "jpegxl": Codec(
        "JPEG XL",
        "Block transforms on the slices, side by side in one image.",
        lambda package, volume, distance: bytes(package.jpegxl_encode(mosaic(volume), distance=distance, effort=7)),
        _picture("jpegxl_decode"),
        25.0,
        1e-2,
        spread=True,
    ),
    "zfp": Codec(
        "ZFP",
        "Block transforms with a tolerance.",
        lambda package, volume, bound: bytes(
            package.zfp_encode(_flat(volume), level=bound, mode=package.ZFP.MODE.FIXED_ACCURACY)
        ),
        _volume("zfp_decode"),
        8.0,
        1e-6,
    ),
}
