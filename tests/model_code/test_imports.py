"""Importing what is large."""

import gc

import pytest

from model_code.common.imports import kept


def test_collection_rests_meanwhile_and_leaves_out_what_is_there_by_then() -> None:
    before = gc.get_freeze_count()
    with kept():
        assert not gc.isenabled()
        made = [[]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert all(each is not made for each in gc.get_objects())


def test_collection_goes_on_after_a_failed_import() -> None:
    with pytest.raises(ImportError), kept():
        raise ImportError
    assert gc.isenabled()
