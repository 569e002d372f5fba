"""4:16 structured sparsity: of each 16 inputs of a matrix, 4 are not zero.

Trainium2 multiplies such a matrix without visiting the zeros, at up to four times its dense rate
(AWS Neuron documentation, "Trainium2 architecture": structured sparsity 16:4). What is stored are
the 4 numbers, in bfloat16, and the position of each, in 4 bits: 10 bytes for 16 numbers.

Shape letters: R rows, I inputs, O outputs, G groups of 16 inputs.
"""

import torch
from torch import Tensor
from torch.nn import functional

GROUP, KEPT = 16, 4


class SparseWeight:
    """A matrix [O, I] with 4 of each 16 inputs, those of the largest magnitude."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.shape = (weight_OI.shape[0], weight_OI.shape[1])
        inputs = self.shape[1]
        if inputs % GROUP:
            raise ValueError(f"4:16 sparsity takes multiples of {GROUP} inputs, got {inputs}")
        groups_OGI = weight_OI.unflatten(1, (-1, GROUP))
        # Stable, so that of two equal numbers the first is kept, on any machine.
        order = groups_OGI.abs().sort(dim=2, descending=True, stable=True).indices
        places_OGK = order[..., :KEPT].sort(dim=2).values
        self.values_OGK = groups_OGI.gather(2, places_OGK).bfloat16()
        halves = places_OGK.to(torch.uint8).unflatten(2, (-1, 2))
        self.places_OG2 = halves[..., 0] | halves[..., 1] << 4

    @property
    def nbytes(self) -> int:
        """The memory that it takes: 5 bits for each number of the dense matrix."""
        return self.values_OGK.nbytes + self.places_OG2.nbytes

    def unpack(self) -> Tensor:
        """Return the matrix with its zeros, [O, I] bfloat16."""
        outputs, inputs = self.shape
        places = torch.stack([self.places_OG2 & 15, self.places_OG2 >> 4], dim=3).flatten(2)
        groups = self.values_OGK.new_zeros(outputs, inputs // GROUP, GROUP)
        return groups.scatter_(2, places.long(), self.values_OGK).flatten(1)

    def __call__(self, x_RI: Tensor) -> Tensor:
        """[R, I] -> [R, O], in the dtype of x. On a CPU through the zeros: nothing is saved."""
        return functional.linear(x_RI, self.unpack().to(x_RI.dtype))


def prune(weight_OI: Tensor) -> Tensor:
    """Return the matrix with 12 of each 16 inputs set to zero, in its own dtype."""
    return torch.where(SparseWeight(weight_OI).unpack() != 0, weight_OI, 0)
