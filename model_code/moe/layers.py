"""Which layers of a decoder have routed experts."""

from model_code.common.decoder import Decoder
from model_code.moe.model import MixtureOfExperts


def mixtures(decoder: Decoder) -> dict[int, MixtureOfExperts]:
    """Return the layers that have routed experts, by their number."""
    found = {}
    for layer, block in enumerate(decoder.layers):
        if isinstance(part := block.feed_forward, MixtureOfExperts):
            found[layer] = part
    return found
