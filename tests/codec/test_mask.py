import itertools

import numpy as np
import pytest
import torch

from scanfield.codec.mask import decode_mask, encode_mask
from scanfield.errors import InputError


def ball(n: int, radius: float) -> torch.Tensor:
    axis = torch.arange(n) - (n - 1) / 2
    a, b, c = torch.meshgrid(axis, axis, axis, indexing="ij")
    return a**2 + b**2 + 0.7 * c**2 < radius**2


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (24, 24, 1), (3, 17, 8), (9, 9, 9), (16, 8, 33)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_every_mask_comes_back(shape, share):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    assert torch.equal(decode_mask(encode_mask(mask)), mask)


def test_a_smooth_object_costs_about_two_bits_per_voxel_of_its_surface():
    mask = ball(64, 24)
    inner = mask.numpy()
    surface = sum(int((inner ^ np.roll(inner, 1, axis)).sum()) for axis in range(3)) / 2
    payload = encode_mask(mask)
    assert torch.equal(decode_mask(payload), mask)
    assert 8 * len(payload) < 2.0 * surface
    assert len(payload) < mask.numel() / 8 / 15, "a fifteenth of the packed bits"


def test_the_same_mask_gives_the_same_bytes():
    assert encode_mask(ball(20, 7)) == encode_mask(ball(20, 7).clone())


def test_damage_is_one_clear_error():
    payload = encode_mask(ball(20, 7))
    for cut in (0, 1, 5, len(payload) // 2, len(payload) - 1):
        with pytest.raises(InputError):
            decode_mask(payload[:cut])
    with pytest.raises(InputError, match="after its mask"):
        decode_mask(payload + b"\0")


def test_no_altered_byte_raises_anything_but_an_input_error():
    payload = encode_mask(ball(12, 4))
    refused = 0
    for at, bit in itertools.product(range(len(payload)), (1, 128)):
        altered = bytearray(payload)
        altered[at] ^= bit
        try:
            decode_mask(bytes(altered))
        except InputError:
            refused += 1
    assert refused > 0


def test_a_hostile_shape_takes_no_memory():
    huge = b"\xff\xff\xff\xff\x07" * 3
    with pytest.raises(InputError, match="truncated"):
        decode_mask(huge + b"\0" * 64)
