"""Cutting an image into blocks where its spectrum is concentrated (Yang et al., AAAI 2023; arXiv 2209.15180).

    D(x) = max |FFT(x)| / sum |FFT(x)|                    concentration of a block's spectrum, in (0, 1]; 1 if constant
    max  sum_i a_i D(x_i) |x_i| / |x|,  sum_i a_i <= N    over cuts of the tree: one active node on every path to a leaf

The tree halves a box along every axis that is longer than half of its longest axis. The published code hands the choice
to an integer program; on a tree, dynamic programming over (node, number of blocks) solves it exactly:

    best(node, n) = max( D |node|,  max over n_1 + n_2 + ... = n of  sum_c best(child c, n_c) )
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.fft import dctn

from scanfield.errors import InputError
from scanfield.space.box import Box


@dataclass(frozen=True)
class Cut:
    """A cut of the tree.

    Args:
        boxes: the blocks; they tile the image.
        code: '1' for a node that is cut, '0' for one that is a block, in depth-first order: all a decoder needs.
        value: the objective, in (0, 1].
    """

    boxes: tuple[Box, ...]
    code: str
    value: float


def whole(shape: Sequence[int]) -> Box:
    """The box of an image."""
    n0, n1, n2 = shape
    return (0, n0), (0, n1), (0, n2)


def children(box: Box) -> list[Box]:
    """The halves (quarters, eighths) of a box; empty if its longest axis has one voxel."""
    sizes = [stop - start for start, stop in box]
    parts = [
        [(start, start + (n + 1) // 2), (start + (n + 1) // 2, stop)]
        if n > 1 and 2 * n > max(sizes)
        else [(start, stop)]
        for (start, stop), n in zip(box, sizes, strict=True)
    ]
    found: list[Box] = [(a, b, c) for a, b, c in itertools.product(*parts)]
    return found if len(found) > 1 else []


def concentration(values: Float[np.ndarray, "n0 n1 n2"]) -> float:
    """D of a block, in (0, 1]."""
    spectrum = np.abs(np.fft.rfftn(values.astype(np.float64), axes=(0, 1, 2)))
    n = values.shape[2]
    twice = np.full(spectrum.shape[2], 2.0)  # a real image's spectrum is symmetric: half of it is computed
    twice[0] = 1.0
    if n % 2 == 0:
        twice[-1] = 1.0
    total = float((spectrum * twice).sum())
    return float(spectrum.max()) / total if total > 0 else 1.0


def adaptive_cut(values: Float[np.ndarray, "n0 n1 n2"], *, blocks: int, levels: int, smallest: int = 8) -> Cut:
    """The best cut with at most `blocks` blocks.

    Args:
        values: non-negative, as D depends on the mean: published are intensities from 0 to 100.
        levels: how often the image may be halved.
        smallest: an axis of fewer than twice as many voxels is not halved.

    Raises:
        InputError: not even one block is allowed.
    """
    if blocks < 1:
        raise InputError(f"an image needs at least one block, got {blocks}")
    total = values.size

    def best(box: Box, level: int) -> list[tuple[float, str]]:
        """The best (value, code) with at most 1, 2, ... blocks; more than the list is long change nothing."""
        part = values[tuple(slice(start, stop) for start, stop in box)]
        alone = (concentration(part) * part.size / total, "0")
        halves = children(box) if level < levels else []
        if not halves or max(stop - start for start, stop in box) < 2 * smallest or len(halves) > blocks:
            return [alone]
        joint = {0: (0.0, "1")}  # the halves so far, by number of blocks
        for half in halves:
            merged: dict[int, tuple[float, str]] = {}
            for more, (value, code) in enumerate(best(half, level + 1), start=1):
                for used, (before, text) in joint.items():
                    n = used + more
                    if n <= blocks and (n not in merged or before + value > merged[n][0]):
                        merged[n] = before + value, text + code
            joint = merged
        found = [alone]
        for n in range(2, max(joint, default=1) + 1):
            found.append(max(found[-1], joint.get(n, alone), key=lambda option: option[0]))
        return found

    value, code = best(whole(values.shape), 0)[-1]
    return Cut(tuple(boxes_of(code, values.shape)), code, value)


def regular_cut(shape: Sequence[int], *, blocks: int, smallest: int = 8) -> Cut:
    """The finest cut into equal parts with at most `blocks` blocks: every box is halved equally often."""
    boxes, code = [whole(shape)], "0"
    while True:
        parts = [children(box) for box in boxes]
        longest = min(max(stop - start for start, stop in box) for box in boxes)
        if not all(parts) or sum(map(len, parts)) > blocks or longest < 2 * smallest:
            return Cut(tuple(boxes), code, float("nan"))
        code = _deeper(code, shape)
        boxes = boxes_of(code, shape)


def boxes_of(code: str, shape: Sequence[int]) -> list[Box]:
    """The blocks of a cut's code.

    Raises:
        InputError: the code describes no cut of this image.
    """
    found: list[Box] = []
    stack = [whole(shape)]
    for letter in code:
        if not stack or letter not in "01":
            raise InputError(f"'{code[:40]}' describes no cut of an image")
        box = stack.pop()
        if letter == "0":
            found.append(box)
            continue
        parts = children(box)
        if not parts:
            raise InputError(f"'{code[:40]}' cuts a block of one voxel")
        stack += reversed(parts)
    if stack:
        raise InputError(f"'{code[:40]}' describes only a part of a cut")
    return found


def _deeper(code: str, shape: Sequence[int]) -> str:
    """Every block of a cut, cut once more."""
    boxes = iter(boxes_of(code, shape))
    return "".join("1" if letter == "1" else "1" + "0" * len(children(next(boxes))) for letter in code)


def shares(
    values: Float[np.ndarray, "n0 n1 n2"], boxes: Sequence[Box], by: str, *, numbers: int = 0
) -> Float[np.ndarray, " blocks"]:
    """Each block's share of the weights, summing to 1.

    Args:
        by: 'concentration', |x_i| / D(x_i) (published); 'size', |x_i|; 'equal'; 'coefficients', |{k: c_ik^2 > t}| with
            the cosine transform c_i of block i and the t for which all blocks together have `numbers` of them (ours).
    """
    parts = [values[tuple(slice(start, stop) for start, stop in box)] for box in boxes]
    if by == "coefficients":
        return _significant([_energies(part) for part in parts], numbers)
    sizes = np.array([part.size for part in parts], dtype=np.float64)
    if by == "concentration":
        sizes /= np.array([concentration(part) for part in parts])
    elif by == "equal":
        sizes = np.ones(len(parts))
    elif by != "size":
        raise ValueError(f"weights are shared by 'concentration', 'coefficients', 'size' or 'equal', got '{by}'")
    return sizes / sizes.sum()


def _energies(values: Float[np.ndarray, "n0 n1 n2"]) -> Float[np.ndarray, " n"]:
    """Squares of the orthonormal cosine transform without the mean."""
    squares = np.square(dctn(values.astype(np.float64), norm="ortho")).reshape(-1)
    return np.asarray(squares[1:])


def _significant(energies: Sequence[Float[np.ndarray, " _"]], numbers: int) -> Float[np.ndarray, " blocks"]:
    """How the `numbers` largest entries of all lists are spread over the lists; no list goes without (a thousandth).

    The best approximation by N coefficients keeps the N largest ones (reverse water-filling): where they lie, weights
    are worth most.
    """
    joint = np.concatenate(energies)
    kept = min(max(numbers, 1), len(joint))
    level = np.partition(joint, len(joint) - kept)[len(joint) - kept] if len(joint) else 0.0
    counts = np.array([float((part >= level).sum()) for part in energies])
    counts = np.maximum(counts, 1e-3 * counts.sum() / len(counts) + 1e-9)
    return np.asarray(counts / counts.sum())
