"""Python's search for garbage is off while a module is compiled, and then as the caller had it."""

from __future__ import annotations

import gc

import pytest
from stretto.driver.compile.garbage import no_search_for_garbage


@pytest.mark.parametrize("was_on", [True, False])
def test_the_search_is_as_it_was_also_after_an_error(was_on: bool) -> None:
    before = gc.isenabled()
    try:
        gc.enable() if was_on else gc.disable()
        with pytest.raises(ValueError), no_search_for_garbage():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() is was_on
    finally:
        gc.enable() if before else gc.disable()
