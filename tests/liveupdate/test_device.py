"""What the kernel's device refuses where there is no such device: each error names the call, and what to do."""

import errno
import os
from pathlib import Path

import pytest

from persistmem.errors import LiveUpdateError
from persistmem.liveupdate.device import KernelDevice, KernelSession, holders
from persistmem.liveupdate.interface import TOKEN_MAX, Token


@pytest.fixture
def device(tmp_path: Path) -> KernelDevice:
    """Something that opens, and is none."""
    path = tmp_path / "liveupdate"
    path.touch()
    return KernelDevice(path)


@pytest.fixture
def session() -> KernelSession:
    """A descriptor that is no session."""
    return KernelSession(os.eventfd(0, os.EFD_CLOEXEC), "documents")


def test_where_there_is_no_device_the_error_says_what_the_kernel_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        LiveUpdateError, match=r"open .*/liveupdate: No such .*ENOENT.*CONFIG_LIVEUPDATE.*liveupdate=on"
    ) as e:
        KernelDevice(tmp_path / "liveupdate")
    assert e.value.errno == errno.ENOENT


def test_who_holds_a_device_is_found_while_it_does(device: KernelDevice, tmp_path: Path) -> None:
    assert holders(tmp_path / "liveupdate") == [os.getpid()]
    device.close()
    assert holders(tmp_path / "liveupdate") == []


def test_what_is_no_device_is_named_so(device: KernelDevice) -> None:
    for call in (device.create_session, device.retrieve_session):
        with pytest.raises(LiveUpdateError, match=r"session 'documents': .*ENOTTY.*no live-update device") as refusal:
            call("documents")
        assert refusal.value.errno == errno.ENOTTY


def test_every_call_on_a_session_names_it_and_its_token(session: KernelSession) -> None:
    with pytest.raises(LiveUpdateError, match=r"session 'documents': preserve descriptor 0 under token 7: .*ENOTTY"):
        session.preserve(0, Token(7))
    with pytest.raises(LiveUpdateError, match=r"session 'documents': retrieve token 7: .*ENOTTY"):
        session.retrieve(Token(7))
    with pytest.raises(LiveUpdateError, match=r"session 'documents': finish: .*ENOTTY"):
        session.finish()


@pytest.mark.parametrize("name", ["", "n" * 64, "n" * 1000, "with\0nul", "\ud800"])
def test_a_name_that_would_be_cut_or_cannot_be_is_einval(device: KernelDevice, name: str) -> None:
    for call in (device.create_session, device.retrieve_session):
        with pytest.raises(LiveUpdateError, match="session name") as refusal:
            call(name)
        assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize("token", [-1, TOKEN_MAX + 1])
def test_a_token_that_is_no_u64_is_einval(session: KernelSession, token: int) -> None:
    with pytest.raises(LiveUpdateError, match="token") as refusal:
        session.preserve(0, Token(token))
    assert refusal.value.errno == errno.EINVAL


def test_a_closed_device_or_session_never_calls_on_a_descriptor_of_that_number(
    device: KernelDevice, session: KernelSession
) -> None:
    device.close()
    device.close()
    session.close()
    session.close()
    with pytest.raises(LiveUpdateError, match="closed") as refusal:
        device.create_session("documents")
    assert refusal.value.errno == errno.EBADF
    with pytest.raises(LiveUpdateError, match="closed") as refusal:
        session.retrieve(Token(1))
    assert refusal.value.errno == errno.EBADF


def test_a_descriptor_that_is_not_open_is_ebadf(session: KernelSession) -> None:
    with pytest.raises(LiveUpdateError, match=r"EBADF.*no such descriptor") as refusal:
        session.preserve(9999, Token(1))
    assert refusal.value.errno == errno.EBADF
