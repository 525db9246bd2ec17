"""Losses of classified points or voxels, and Dice itself. All are means: a weight serves any number of them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional

_EMPTY = 1.0  # points: keeps the ratio defined, and gentle, where a class is absent


def cross_entropy(logits: Float[Tensor, "*n k"], classes: Integer[Tensor, "*n"]) -> Float[Tensor, ""]:
    """mean over the points of -log softmax(logits)[class], in nats."""
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), classes.reshape(-1).long())


def soft_dice(logits: Float[Tensor, "*b n k"], classes: Integer[Tensor, "*b n"]) -> Float[Tensor, ""]:
    """1 - mean over images and classes but background (0) of (2 sum p g + e) / (sum p + sum g + e), sums over the n
    points of an image.

    p are the softmax probabilities, g is 1 where the class is the true one, e = 1 point (Drozdzal et al., DLMIA 2016).
    A class that an image does not show costs what probability it gets.

    Raises:
        ValueError: there is no class but background.
    """
    count = logits.shape[-1]
    if count < 2:
        raise ValueError(f"Dice needs a class beside background, got {count} class")
    p = logits.softmax(dim=-1)[..., 1:]
    g = functional.one_hot(classes.long(), count)[..., 1:].to(p.dtype)
    both, size = (p * g).sum(dim=-2), p.sum(dim=-2) + g.sum(dim=-2)
    return 1 - ((2 * both + _EMPTY) / (size + _EMPTY)).mean()


def mean_dice(found: Integer[Tensor, "*n"], true: Integer[Tensor, "*n"]) -> float:
    """2 |A and B| / (|A| + |B|) of the points found and true of a class, averaged over the classes that are there but
    background (0). Where there is none, 1 if nothing was found, else 0."""
    found, true = found.reshape(-1).long(), true.reshape(-1).long()
    count = 1 + max(int(found.max()), int(true.max()))
    both = torch.bincount(true[true == found], minlength=count)
    size = torch.bincount(true, minlength=count) + torch.bincount(found, minlength=count)
    there = true[true > 0].unique()
    return float((2 * both[there] / size[there]).mean()) if len(there) else float(not bool(found.any()))
