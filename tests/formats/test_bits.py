"""Codes of any width come back as they were, whatever the shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petalite.formats.bits import pack_bits, unpack_bits


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 9), columns=st.integers(1, 70), seed=st.integers(0, 1000))
def test_codes_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack_bits(packed, bits, columns), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_highest_code_keeps_all_its_bits(bits: int) -> None:
    codes = torch.full((3, 11), 2**bits - 1, dtype=torch.uint8)
    assert torch.equal(unpack_bits(pack_bits(codes, bits), bits, 11), codes)


def test_the_first_code_stands_in_the_lowest_bits() -> None:
    packed = pack_bits(torch.tensor([[1, 2, 7, 0, 0, 0, 0, 5]], dtype=torch.uint8), 3)
    assert packed.tolist() == [[0b11_010_001, 0b0_000_000_1, 0b101_000_00]]
