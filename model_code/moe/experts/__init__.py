"""Experts that lie elsewhere until a token visits them: in memory under a budget, on disk, in S3.

`layout` divides a checkpoint so that each expert can be fetched and checked by itself; `index` says
where each lies; `source` brings its bytes; `cache` decides which stay; `module` computes with them.
"""

from model_code.common.engine import UnavailableError


class ExpertsUnavailableError(UnavailableError):
    """An expert that a token visits cannot be had at the moment; another try may succeed."""


__all__ = ["ExpertsUnavailableError"]
