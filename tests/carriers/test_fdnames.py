"""Names in a service manager's store: readable where they can be, and whole whatever they are."""

import hypothesis
import pytest
from hypothesis import strategies

from persistmem import errors
from persistmem.carriers.fdnames import from_fdname, to_fdname


@pytest.mark.parametrize("name", ["a", "sessions", "web-1.2_x@y+z", "x" * 200])
def test_a_plain_name_can_be_read_in_the_store(name: str) -> None:
    assert to_fdname(name) == f"pm.{name}"
    assert from_fdname(f"pm.{name}") == name


@pytest.mark.parametrize(
    ("name", "fdname"),
    [("a b", "pm=VIX1"), ("日本", "pm==9i`BoU8"), (":", "pm=Is"), ("a=b", "pm=VLf6"), ("\n", "pm=3I")],
)
def test_any_other_name_is_in_base_85(name: str, fdname: str) -> None:
    assert to_fdname(name) == fdname
    assert from_fdname(fdname) == name


@hypothesis.given(strategies.text(min_size=1, max_size=200).filter(lambda text: len(text.encode()) <= 200))
@hypothesis.settings(max_examples=300)
def test_every_name_fits_what_systemd_takes_and_comes_back(name: str) -> None:
    fdname = to_fdname(name)
    assert len(fdname) <= 255
    assert all(" " <= character <= "~" and character != ":" for character in fdname)
    assert from_fdname(fdname) == name


@pytest.mark.parametrize("name", ["", "x" * 201, "é" * 101, "\ud800"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(errors.InvalidNameError):
        to_fdname(name)


@pytest.mark.parametrize(
    "fdname", ["", "varlink", "pm", "pm.", "pm=", "pm.a b", "pm.a:b", "pm=~~~~~~", "pm=a", "pm= ", "pm.é", "pm=VPaA"]
)
def test_what_others_stored_is_not_taken_for_ours(fdname: str) -> None:
    assert from_fdname(fdname) is None
