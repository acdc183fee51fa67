"""The pictures of docs/overlap.md: the page shows all of them, and one that is drawn anew is the one in the folder."""

from __future__ import annotations

import re

import pytest
from stretto.driver.pictures.overlap import FOLDER, PICTURES, picture


def test_the_page_shows_every_picture() -> None:
    page = (FOLDER.parents[1] / "overlap.md").read_text(encoding="utf-8")
    assert re.findall(r"\(pictures/overlap/(.*)\.svg\)", page) == list(PICTURES)
    assert sorted(file.stem for file in FOLDER.iterdir()) == sorted(PICTURES)


@pytest.mark.slow
def test_a_picture_that_is_drawn_anew_is_the_one_of_the_page() -> None:
    assert picture("scatter-norms") == (FOLDER / "scatter-norms.svg").read_text(encoding="utf-8")
