"""Sessions: names, order of calls, what closing does."""

import errno
import os
from pathlib import Path

from .machine import ONE, TWO, Machine, content_of, kernels_alone, memfd, refused

LONGEST_NAME = "n" * 63
ODD_NAMES = ("a/b", "two\nlines", os.fsdecode(b"\xff"))
MANY_SESSIONS = 300


def before_a_second_open_of_the_device_is_ebusy(machine: Machine) -> None:
    with refused(errno.EBUSY):
        machine.open_device()


def before_creating_a_name_that_exists_is_eexist(machine: Machine) -> None:
    machine.session("taken")
    with refused(errno.EEXIST):
        machine.device.create_session("taken")


def before_a_name_of_63_characters_crosses(machine: Machine) -> None:
    assert machine.session(LONGEST_NAME).name == LONGEST_NAME


def after_a_name_of_63_characters_crosses(machine: Machine) -> None:
    assert machine.device.retrieve_session(LONGEST_NAME).name == LONGEST_NAME


def before_names_of_any_bytes_cross(machine: Machine) -> None:
    for name in ODD_NAMES:
        assert machine.session(name).name == name


def after_names_of_any_bytes_cross(machine: Machine) -> None:
    for name in ODD_NAMES:
        assert machine.device.retrieve_session(name).name == name


def before_a_name_that_is_empty_or_has_64_characters_is_einval(machine: Machine) -> None:
    for name in ("", "n" * 64):
        with refused(errno.EINVAL):
            machine.device.create_session(name)


def before_retrieving_a_session_in_the_kernel_that_created_it_is_enoent(machine: Machine) -> None:
    machine.session("of this kernel")
    with refused(errno.ENOENT):
        machine.device.retrieve_session("of this kernel")


def before_retrieving_an_unknown_session_is_enoent(machine: Machine) -> None:
    with refused(errno.ENOENT):
        machine.device.retrieve_session("never made")


def after_retrieving_an_unknown_session_is_enoent(machine: Machine) -> None:
    with refused(errno.ENOENT):
        machine.device.retrieve_session("never made")


def before_retrieving_a_session_twice_is_einval(machine: Machine) -> None:
    machine.session("retrieved twice")


def after_retrieving_a_session_twice_is_einval(machine: Machine) -> None:
    session = machine.device.retrieve_session("retrieved twice")
    with refused(errno.EINVAL):
        machine.device.retrieve_session("retrieved twice")
    session.finish()
    with refused(errno.EINVAL):
        machine.device.retrieve_session("retrieved twice")


def before_a_name_can_be_created_while_the_incoming_session_is_unfinished(machine: Machine) -> None:
    machine.session("of both kernels").preserve(memfd(b"old"), ONE)


def after_a_name_can_be_created_while_the_incoming_session_is_unfinished(machine: Machine) -> None:
    incoming = machine.device.retrieve_session("of both kernels")
    machine.session("of both kernels").preserve(memfd(b"new"), ONE)
    assert content_of(incoming.retrieve(ONE)) == b"old"


def before_finishing_an_outgoing_session_is_einval(machine: Machine) -> None:
    session = machine.session("outgoing, finished")
    with refused(errno.EINVAL):
        session.finish()


def before_retrieving_from_an_outgoing_session_is_einval(machine: Machine) -> None:
    session = machine.session("outgoing, retrieved from")
    session.preserve(memfd(), ONE)
    with refused(errno.EINVAL):
        session.retrieve(ONE)


def before_preserving_into_an_incoming_session_is_einval(machine: Machine) -> None:
    machine.session("incoming, preserved into")


def after_preserving_into_an_incoming_session_is_einval(machine: Machine) -> None:
    session = machine.device.retrieve_session("incoming, preserved into")
    with refused(errno.EINVAL):
        session.preserve(memfd(), ONE)
    session.finish()
    with refused(errno.EINVAL):
        session.preserve(memfd(), ONE)


def before_finishing_twice_is_fine(machine: Machine) -> None:
    machine.session("finished twice")


def after_finishing_twice_is_fine(machine: Machine) -> None:
    session = machine.device.retrieve_session("finished twice")
    session.finish()
    session.finish()


def before_retrieving_a_token_after_finish_is_enoent(machine: Machine) -> None:
    session = machine.session("finished")
    session.preserve(memfd(), ONE)
    session.preserve(memfd(), TWO)


def after_retrieving_a_token_after_finish_is_enoent(machine: Machine) -> None:
    session = machine.device.retrieve_session("finished")
    session.retrieve(ONE)
    session.finish()
    for token in (ONE, TWO):
        with refused(errno.ENOENT):
            session.retrieve(token)


def before_what_was_retrieved_outlives_its_session(machine: Machine) -> None:
    machine.session("outlived").preserve(memfd(b"stays"), ONE)


def after_what_was_retrieved_outlives_its_session(machine: Machine) -> None:
    with machine.device.retrieve_session("outlived") as session:
        fd = session.retrieve(ONE)
        session.finish()
    assert content_of(fd) == b"stays"
    with refused(errno.ENOENT):
        machine.device.retrieve_session("outlived")


def before_closing_an_outgoing_session_unpreserves_what_is_in_it(machine: Machine) -> None:
    session = machine.device.create_session("closed before")
    fd = memfd(b"unpreserved")
    session.preserve(fd, ONE)
    session.close()
    os.ftruncate(fd, 2)
    with machine.device.create_session("closed before too") as other:
        other.preserve(fd, ONE)


def after_closing_an_outgoing_session_unpreserves_what_is_in_it(machine: Machine) -> None:
    for name in ("closed before", "closed before too"):
        with refused(errno.ENOENT):
            machine.device.retrieve_session(name)


def before_a_name_is_free_again_when_its_session_is_closed(machine: Machine) -> None:
    machine.device.create_session("made again").close()
    machine.session("made again").preserve(memfd(b"second"), ONE)


def after_a_name_is_free_again_when_its_session_is_closed(machine: Machine) -> None:
    assert content_of(machine.device.retrieve_session("made again").retrieve(ONE)) == b"second"


def before_closing_an_incoming_session_loses_what_was_not_retrieved(machine: Machine) -> None:
    session = machine.session("closed early")
    session.preserve(memfd(b"saved"), ONE)
    session.preserve(memfd(b"lost"), TWO)


def after_closing_an_incoming_session_loses_what_was_not_retrieved(machine: Machine) -> None:
    session = machine.device.retrieve_session("closed early")
    fd = session.retrieve(ONE)
    session.close()
    assert content_of(fd) == b"saved"
    with refused(errno.ENOENT):
        machine.device.retrieve_session("closed early")


def before_300_sessions_cross(machine: Machine) -> None:
    for number in range(MANY_SESSIONS):
        machine.session(f"one of many {number}")


def after_300_sessions_cross(machine: Machine) -> None:
    for number in range(MANY_SESSIONS):
        machine.device.retrieve_session(f"one of many {number}").close()


def before_a_closed_session_refuses_with_ebadf(machine: Machine) -> None:
    session = machine.device.create_session("closed")
    session.close()
    session.close()
    with refused(errno.EBADF):
        session.preserve(memfd(), ONE)


def before_sessions_stay_open_when_the_device_is_closed(machine: Machine) -> None:
    session = machine.session("outlives the device")
    machine.device.close()
    session.preserve(memfd(b"still there"), ONE)
    machine.device = machine.open_device()


def after_sessions_stay_open_when_the_device_is_closed(machine: Machine) -> None:
    assert content_of(machine.device.retrieve_session("outlives the device").retrieve(ONE)) == b"still there"


@kernels_alone
def before_an_unprivileged_process_uses_a_session_it_was_given_but_cannot_open_the_device(machine: Machine) -> None:
    session = machine.session("given away")
    machine.device.close()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            session.preserve(memfd(b"from nobody"), ONE)
            with refused(errno.EACCES):
                machine.open_device()
            status = 0
        finally:
            os._exit(status)  # a failure must not go on with the suite in the child
    assert os.waitpid(child, 0)[1] == 0
    machine.device = machine.open_device()


@kernels_alone
def after_an_unprivileged_process_uses_a_session_it_was_given_but_cannot_open_the_device(machine: Machine) -> None:
    assert content_of(machine.device.retrieve_session("given away").retrieve(ONE)) == b"from nobody"


@kernels_alone
def before_the_link_of_a_session_descriptor_names_it(machine: Machine) -> None:
    link = Path(f"/proc/self/fd/{machine.session('shown in proc').fileno()}").readlink()
    assert str(link) == "anon_inode:[luo_session] shown in proc"
