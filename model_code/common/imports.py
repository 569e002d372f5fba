"""Large imports, such as torch's."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """Import without garbage collection, and leave out of it, from then on, what was imported.

    The collector would go through torch's hundred thousands of objects again and again, a tenth of
    the import's time, and once more in each full collection later: all of them stay.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
