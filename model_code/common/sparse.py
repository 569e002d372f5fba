"""4:16 structured sparsity: of each 16 inputs of a matrix, at most 4 are not zero.

Trainium2 multiplies such a matrix without visiting the zeros, at up to four times its dense rate
(AWS Neuron documentation, "NeuronCore-v3 architecture": M of every N contiguous elements, 4:16
among the patterns). What is stored are the 4 numbers and the position of each, in 4 bits: 10 bytes
for 16 numbers of bfloat16.

In a file two tensors take the place of a matrix NAME: NAME.sparse_values [O, G, 4] and
NAME.sparse_places [O, G, 2] in uint8, the positions in rising order, the first of two in the low
half of its byte.

Shape letters: R rows, I inputs, O outputs, G groups of 16 inputs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

GROUP, KEPT = 16, 4
VALUES, PLACES = ".sparse_values", ".sparse_places"
_BLOCK = 1024  # outputs that are ordered at a time: the order takes eight bytes a number


class SparseWeight:
    """A matrix [O, I] with 4 of each 16 inputs, those of the largest magnitude.

    Args:
        weight_OI: What to keep the largest numbers of.
        dtype: Of the numbers that are kept.

    Raises:
        ValueError: The inputs cannot be divided into groups of 16.
    """

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype = torch.bfloat16) -> None:
        check_groups(weight_OI)
        outputs, inputs = weight_OI.shape
        groups = inputs // GROUP
        self.values_OGK = torch.empty(outputs, groups, KEPT, dtype=dtype)
        self.places_OG2 = torch.empty(outputs, groups, KEPT // 2, dtype=torch.uint8)
        for rows, block_OGI in _blocks(weight_OI):
            places_OGK = _largest(block_OGI)
            self.values_OGK[rows] = block_OGI.gather(2, places_OGK).to(dtype)
            halves = places_OGK.to(torch.uint8).unflatten(2, (-1, 2))
            self.places_OG2[rows] = halves[..., 0] | halves[..., 1] << 4

    @classmethod
    def of(cls, values_OGK: Tensor, places_OG2: Tensor) -> "SparseWeight":
        """Return the matrix that such tensors stand for.

        Raises:
            ValueError: Shapes, dtypes or positions are not those of a packed matrix.
        """
        fits = (
            values_OGK.dim() == 3
            and values_OGK.shape[2] == KEPT
            and values_OGK.dtype.is_floating_point
            and places_OG2.shape == (*values_OGK.shape[:2], KEPT // 2)
            and places_OG2.dtype == torch.uint8
        )
        if not fits:
            raise ValueError(
                f"4:16 values of {values_OGK.dtype} {tuple(values_OGK.shape)} with places of "
                f"{places_OG2.dtype} {tuple(places_OG2.shape)}; allowed are floats [O, G, 4] with "
                f"uint8 [O, G, 2]"
            )
        made = cls.__new__(cls)
        made.values_OGK, made.places_OG2 = values_OGK, places_OG2
        if (made._places().diff(dim=2) <= 0).any():
            raise ValueError("4:16 places of a group must rise; these are damaged")
        return made

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.values_OGK.shape[0], self.values_OGK.shape[1] * GROUP

    @property
    def nbytes(self) -> int:
        """The memory that it takes: 5 bits for each number of the dense matrix in bfloat16."""
        return self.values_OGK.nbytes + self.places_OG2.nbytes

    def unpack(self) -> Tensor:
        """Return the matrix with its zeros, [O, I] in the dtype of the values."""
        outputs, groups, _ = self.values_OGK.shape
        dense_OGI = self.values_OGK.new_zeros(outputs, groups, GROUP)
        return dense_OGI.scatter_(2, self._places().long(), self.values_OGK).flatten(1)

    def _places(self) -> Tensor:
        """Return each position by itself: [O, G, 4] int8."""
        halves = torch.stack([self.places_OG2 & 15, self.places_OG2 >> 4], dim=3)
        return halves.flatten(2).to(torch.int8)

    def __call__(self, x_RI: Tensor) -> Tensor:
        """[R, I] -> [R, O], in the dtype of x. On a CPU through the zeros: nothing is saved."""
        return functional.linear(x_RI, self.unpack().to(x_RI.dtype))


def prune(weight_OI: Tensor) -> Tensor:
    """Return the matrix with all but the 4 largest of each 16 inputs set to zero, in its dtype."""
    check_groups(weight_OI)
    pruned_OI = torch.zeros_like(weight_OI)
    for rows, block_OGI in _blocks(weight_OI):
        places_OGK = _largest(block_OGI)
        kept_OGK = block_OGI.gather(2, places_OGK)
        pruned_OI[rows].unflatten(1, (-1, GROUP)).scatter_(2, places_OGK, kept_OGK)
    return pruned_OI


def most_in_a_group(weight_OI: Tensor) -> int:
    """Return how many numbers other than zero the fullest 16 inputs of a matrix have."""
    check_groups(weight_OI)
    return max((int((block != 0).sum(2).max()) for _, block in _blocks(weight_OI)), default=0)


def check_groups(weight_OI: Tensor) -> None:
    """Refuse a matrix whose inputs are no multiple of 16."""
    inputs = weight_OI.shape[1]
    if inputs % GROUP:
        raise ValueError(f"4:16 sparsity takes multiples of {GROUP} inputs, got {inputs}")


def _blocks(weight_OI: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield some outputs at a time, in groups: [.., G, 16]."""
    for first in range(0, len(weight_OI), _BLOCK):
        rows = slice(first, first + _BLOCK)
        yield rows, weight_OI[rows].unflatten(1, (-1, GROUP))


def _largest(groups_OGI: Tensor) -> Tensor:
    """Return where the largest numbers of each group are, in rising order: [O, G, 4] int64."""
    # Stable, so that of two equal numbers the first is kept, on any machine.
    order = groups_OGI.abs().sort(dim=2, descending=True, stable=True).indices
    return order[..., :KEPT].sort(dim=2).values
