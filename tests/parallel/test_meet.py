"""Processes meet before JAX may end one without a word; who does not come or fit is named."""

import socket
import threading
import time

import pytest

from dsjax.errors import UserError
from dsjax.parallel import meet


@pytest.fixture
def where():
    """An address of this machine whose port is free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def together(where, *processes, seconds=20.0):
    """Sentences that each (count, number) is told, all of them at once; None where all came."""
    told = {}

    def one(place, count, number):
        try:
            meet.wait(where, count, number, seconds)
            told[place] = None
        except UserError as error:
            told[place] = str(error)

    threads = [threading.Thread(target=one, args=(i, *p)) for i, p in enumerate(processes)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    return [told[i] for i in range(len(processes))]


def test_all_go_on_once_the_last_is_there_in_whatever_order_they_come(where):
    assert together(where, (3, 2), (3, 0), (3, 1)) == [None, None, None]
    with socket.socket() as again:  # the port is free for JAX at once
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(meet.address(where))


def test_one_alone_waits_for_nobody(where):
    assert together(where, (1, 0)) == [None]


def test_those_that_did_not_come_are_named(where):
    told = together(where, (4, 0), (4, 2), seconds=1.5)
    assert "processes 1, 3 of 4 did not come" in told[0]
    assert "not all of 4" in told[1]
    assert "process 0 was not found" in together(where, (2, 1), seconds=1)[0]


def test_those_that_do_not_fit_are_sent_away_and_the_others_meet(where):
    told = together(where, (3, 0), (3, 1), (3, 1), (2, 1), (3, 2))
    assert told[0] is told[1] is told[4] is None
    assert "another process with the number 1" in told[2]
    assert "3 processes and process 1 of 2" in told[3]


def test_a_stranger_and_one_that_was_killed_are_no_hindrance(where):
    first = threading.Thread(target=meet.wait, args=(where, 3, 0, 20.0))
    first.start()
    time.sleep(0.5)
    for words in (b"GET / HTTP/1.1\r\n", b"\xff\n", b"dsjax x y\n", b"dsjax 3 1\n", b""):
        with socket.create_connection(meet.address(where)) as stranger:
            stranger.sendall(words)
    assert together(where, (3, 1), (3, 2)) == [None, None]
    first.join()


def test_what_answers_must_be_the_first_process(where):
    with socket.create_server(meet.address(where)) as other:
        other.settimeout(5)

        def answer():
            opened = other.accept()[0]
            opened.sendall(b"SSH-2.0-server\n")
            opened.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="not the first process"):
            meet.wait(where, 2, 1, 0.2)
        thread.join()


def test_a_place_where_it_cannot_listen_is_refused_at_once(where, monkeypatch):
    with socket.create_server(meet.address(where)), pytest.raises(UserError, match="in use"):
        meet.wait(where, 2, 0, 20.0)
    with pytest.raises(UserError, match=r"192\.0\.2\.1:5.*machine that process 0 is on"):
        meet.wait("192.0.2.1:5", 2, 0, 20.0)
    monkeypatch.setattr(meet, "RESOLVE_S", 0.0)
    with pytest.raises(UserError, match=r"nowhere\.invalid stands for no address"):
        meet.wait("nowhere.invalid:5", 2, 0, 20.0)
    with pytest.raises(UserError, match="stands for no address"):
        meet.wait("a" * 70 + ".x:5", 2, 0, 20.0)


def test_an_ipv6_address_stands_in_brackets():
    assert meet.address("[fe80::1]:5") == ("fe80::1", 5)
