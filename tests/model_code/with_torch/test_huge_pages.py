"""Weights and caches ask for huge pages, and nothing else does."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from model_code.common import huge_pages
from model_code.common.cache import Part, WholeLayer
from model_code.common.quantize import Int8Weight

pytestmark = pytest.mark.torch


def asked_for(tensor: torch.Tensor) -> int:
    """Return how many bytes of a tensor Linux may give in huge pages ("hg" in its flags)."""
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    found, low, high = 0, 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if place := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            low, high = (int(each, 16) for each in place.groups())
        elif line.startswith("VmFlags:") and "hg" in line.split():
            found += max(0, min(high, stop) - max(low, start))
    return found


@pytest.mark.parametrize("size", [0, 1, huge_pages.SIZE // 4])
def test_what_holds_no_huge_page_is_left_alone(size: int) -> None:
    tensor = torch.empty(size)
    assert huge_pages.advise(tensor) is tensor


@pytest.mark.parametrize("pages", [2, 9])
def test_all_whole_pages_of_a_tensor_are_asked_for(pages: int) -> None:
    # Memory that nobody had before: what was freed may have been asked for already.
    with mmap.mmap(-1, pages * huge_pages.SIZE + 100) as fresh:
        tensor = torch.frombuffer(fresh, dtype=torch.uint8)
        huge_pages.advise(tensor)
        found, start = asked_for(tensor), tensor.data_ptr()
        del tensor
    inside = (start + pages * huge_pages.SIZE + 100) // huge_pages.SIZE - -(
        -start // huge_pages.SIZE
    )
    assert found == inside * huge_pages.SIZE > 0


def test_zeros_are_zeros() -> None:
    tensor = huge_pages.zeros((3, huge_pages.SIZE // 4), torch.float32)
    assert tensor.shape == (3, huge_pages.SIZE // 4)
    assert not tensor.any()


def test_caches_and_packed_weights_are_in_huge_pages() -> None:
    layer = WholeLayer([Part(4, 64)], slots=2, context=8192, dtype=torch.float32)
    packed = Int8Weight(torch.ones(4096, 2048))
    for tensor in (*layer.stores, packed.numbers_OI):
        assert asked_for(tensor) > tensor.nbytes / 2
