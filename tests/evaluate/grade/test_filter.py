"""The filter decides as it says, on both machines: it is run here as the kernel runs it."""

import errno
import struct

import pytest

from dsjax.evaluate.grade import syscalls

MACHINES = list(syscalls.ARCHITECTURES)
REFUSED, UNKNOWN = syscalls.FAIL | errno.EPERM, syscalls.FAIL | errno.ENOSYS
PID = 4321


def decide(machine: str, nr: int, arguments=(), audit: int | None = None) -> int:
    """The verdict of the filter on a call: classic BPF over struct seccomp_data."""
    audit = syscalls.ARCHITECTURES[machine][1] if audit is None else audit
    given = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", nr, audit, 0, *(x % 2**64 for x in given))
    program = syscalls.program(machine, PID)
    at = value = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == syscalls.RETURN:
            return operand
        if code == syscalls.LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
        elif code == syscalls.AND:
            value &= operand
        else:
            is_so = value == operand if code == syscalls.EQUAL else bool(value & operand)
            at += if_true if is_so else if_false


def number(machine: str, name: str) -> int:
    listed = syscalls.ALLOWED + syscalls.IN_PART + syscalls.REFUSED
    return syscalls.number(listed, machine)[name]


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_not_listed_is_unknown(machine):
    listed = {which: set(syscalls.number(getattr(syscalls, which), machine).values())
              for which in ("ALLOWED", "IN_PART", "REFUSED")}
    allowed, parts, refused = listed.values()
    assert len(allowed | parts | refused) == len(allowed) + len(parts) + len(refused)
    for nr in range(1024):
        want = {nr in allowed: syscalls.ALLOW, nr in refused: REFUSED}.get(True, UNKNOWN)
        assert nr in parts or decide(machine, nr) == want
    assert decide(machine, 0x40000000 | number(machine, "read")) == UNKNOWN  # x32


@pytest.mark.parametrize("machine", MACHINES)
def test_another_machines_calls_kill(machine):
    assert decide(machine, number(machine, "read"), audit=0x40000003) == syscalls.KILL  # i386


CASES = [
    ("clone", (0x3D0F00,), True),  # a thread of glibc
    ("clone", (0x01200011,), False),  # fork of glibc
    ("clone", (0x4111,), False),  # vfork
    ("kill", (PID, 9), True), ("kill", (0, 9), False), ("kill", (-1, 9), False),
    ("kill", (PID + 1, 0), False), ("tgkill", (PID, PID, 6), True), ("tgkill", (1, 1, 6), False),
    ("prctl", (15,), True), ("prctl", (1,), False), ("prctl", (22,), False), ("prctl", (4,), False),
    ("prlimit64", (0, 7, 0), True), ("prlimit64", (0, 7, 64), False),
    ("prlimit64", (0, 7, 1 << 32), False),
    ("sendto", (3, 64, 1, 0, 0), True), ("sendto", (3, 64, 1, 0, 64), False),
    ("sendto", (3, 64, 1, 0, 1 << 40), False),
    ("openat", (0, 0, 0o2000000), True), ("openat", (0, 0, 0o1101), True),
    ("openat", (0, 0, 0o1002), True), ("openat", (0, 0, 0o1000), False),
    ("openat", (0, 0, 0o1003), False), ("openat", (0, 0, 0o20001000), False),
    ("socketpair", (1, 1), True), ("socketpair", (2, 1), False),
    ("ioctl", (0, 0x5401), True), ("ioctl", (0, 0x5412), False),  # TIOCSTI
    ("fcntl", (0, 3), True), ("fcntl", (0, 8), False), ("fcntl", (0, 10), False),
    ("fcntl", (0, 15), False),
]


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_reach_out_are_allowed_in_part(machine):
    found = [decide(machine, number(machine, name), given) for name, given, _ in CASES]
    assert found == [syscalls.ALLOW if is_fine else REFUSED for *_, is_fine in CASES]
    assert {name for name, *_ in CASES} | {"open"} == set(
        syscalls.number(syscalls.IN_PART, "x86_64"))
    if machine == "x86_64":
        assert decide(machine, number(machine, "open"), (0, 0o1000)) == REFUSED
        assert decide(machine, number(machine, "open"), (0, 0o1101)) == syscalls.ALLOW
