"""Filter of system calls: the few that an ordinary program needs, and no other.

A list of what is allowed, so that a call that a future kernel brings is refused too. Those that
would leave the process are allowed in part, by their arguments: threads but no new process, signals
to the own process alone, limits read but not set, pairs of pipes but no socket. The pointers of a
call cannot be read by a filter; clone3, whose flags lie behind one, therefore counts as unknown
(ENOSYS), and the C library falls back to clone.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine: its column below, and AUDIT_ARCH of linux/audit.h."""

ALLOWED = """
read:0:63  write:1:64  close:3:57  fstat:5:80  lseek:8:62  mmap:9:222  mprotect:10:226
munmap:11:215  brk:12:214  mremap:25:216  msync:26:227  mincore:27:232  madvise:28:233
pread64:17:67  pwrite64:18:68  readv:19:65  writev:20:66  preadv:295:69  pwritev:296:70
rt_sigaction:13:134  rt_sigprocmask:14:135  rt_sigreturn:15:139  rt_sigpending:127:136
rt_sigtimedwait:128:137  rt_sigsuspend:130:133  sigaltstack:131:132  pause:34:-
restart_syscall:219:128  access:21:-  faccessat:269:48  faccessat2:439:439  stat:4:-  lstat:6:-
newfstatat:262:79  statx:332:291  statfs:137:43  fstatfs:138:44  readlink:89:-  readlinkat:267:78
getdents64:217:61  getcwd:79:17  chdir:80:49  fchdir:81:50  umask:95:166  creat:85:-  rename:82:-
renameat:264:38  renameat2:316:276  unlink:87:-  unlinkat:263:35  ftruncate:77:46
fallocate:285:47  fadvise64:221:223  fsync:74:82  fdatasync:75:83  flock:73:32
copy_file_range:326:285  sendfile:40:71  pipe:22:-  pipe2:293:59  dup:32:23  dup2:33:-
dup3:292:24  close_range:436:436  select:23:-  pselect6:270:72  poll:7:-  ppoll:271:73
epoll_create:213:-  epoll_create1:291:20  epoll_ctl:233:21  epoll_wait:232:-  epoll_pwait:281:22
epoll_pwait2:441:441  eventfd2:290:19  recvfrom:45:207  shutdown:48:210
getsockname:51:204  getpeername:52:205  getsockopt:55:209  getpid:39:172  getppid:110:173
gettid:186:178  getpgrp:111:-  getpgid:121:155  getsid:124:156  getuid:102:174  geteuid:107:175
getgid:104:176  getegid:108:177  getgroups:115:158  getresuid:118:148  getresgid:120:150
uname:63:160  sysinfo:99:179  times:100:153  getrlimit:97:163  getrusage:98:165
getpriority:140:141  exit:60:93  exit_group:231:94  wait4:61:260  waitid:247:95  arch_prctl:158:-
futex:202:98  futex_waitv:449:449  set_tid_address:218:96  set_robust_list:273:99  rseq:334:293
membarrier:324:283  getcpu:309:168  sched_yield:24:124  sched_getaffinity:204:123
sched_getparam:143:121  sched_getscheduler:145:120  sched_get_priority_max:146:125
sched_get_priority_min:147:126  gettimeofday:96:169  time:201:-  clock_gettime:228:113
clock_getres:229:114  nanosleep:35:101  clock_nanosleep:230:115  getitimer:36:102
setitimer:38:103  alarm:37:-  timerfd_create:283:85  timerfd_settime:286:86
timerfd_gettime:287:87  timer_create:222:107  timer_settime:223:110  timer_gettime:224:108
timer_getoverrun:225:109  timer_delete:226:111  getrandom:318:278
"""
IN_PART = """
clone:56:220  kill:62:129  tgkill:234:131  prctl:157:167  prlimit64:302:261  open:2:-
openat:257:56  socketpair:53:199  sendto:44:206  ioctl:16:29  fcntl:72:25
"""
REFUSED = """
socket:41:198  connect:42:203  bind:49:200  listen:50:201  accept:43:202  accept4:288:242
sendmsg:46:211  recvmsg:47:212  fork:57:-  vfork:58:-  execve:59:221  execveat:322:281
ptrace:101:117
"""
"""Name, number on x86_64, number on aarch64."""

ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h; FAIL | errno
LOAD, AND, EQUAL, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x45, 0x06  # linux/bpf_common.h
NR, ARCH, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
CLONE_THREAD, AF_UNIX, O_TRUNC, O_ACCMODE = 0x10000, 1, 0x200, 3
PRCTLS = (15, 16)  # the name of a thread
IOCTLS = (0x5401, 0x802C542A, 0x5421, 0x541B, 0x5450, 0x5451)  # isatty, FIONBIO, FIONREAD, cloexec
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # copies, flags, locks; no SETOWN, SETSIG
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def number(listed: str, machine: str) -> dict[str, int]:
    """Return the numbers by name that a machine has, of a listing as above."""
    column = 1 + ARCHITECTURES[machine][0]
    rows = (entry.split(":") for entry in listed.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def program(machine: str, pid: int) -> list[Instruction]:
    """Return the filter of a process; signals reach that process alone."""
    made = [_load(ARCH), (EQUAL, 1, 0, ARCHITECTURES[machine][1]), _return(KILL), _load(NR)]
    for nr in number(ALLOWED, machine).values():
        made += _on(nr, [_return(ALLOW)])
    for name, nr in number(IN_PART, machine).items():
        made += _on(nr, _conditions(pid)[name])
    for nr in number(REFUSED, machine).values():
        made += _on(nr, [_return(FAIL | errno.EPERM)])
    return [*made, _return(FAIL | errno.ENOSYS)]


def install(machine: str) -> None:
    """Put the filter over this process, for good; it must be the only thread."""
    made = program(machine, os.getpid())
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in made))
    head = struct.pack("<HxxxxxxQ", len(made), ctypes.addressof(code))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, head, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def _conditions(pid: int) -> dict[str, list[Instruction]]:
    to_itself = _one_of(0, (pid,))
    return {
        "clone": [_argument(0), (ANY_BIT, 0, 1, CLONE_THREAD), _return(ALLOW),
                  _return(FAIL | errno.EPERM)],
        "kill": to_itself,
        "tgkill": to_itself,
        "prctl": _one_of(0, PRCTLS),
        "prlimit64": _null(2),
        "sendto": _null(4),  # no address: to the other end of the pair
        "open": _opening(1),
        "openat": _opening(2),
        "socketpair": _one_of(0, (AF_UNIX,)),
        "ioctl": _one_of(1, IOCTLS),
        "fcntl": _one_of(1, FCNTLS),
    }


def _opening(flags: int) -> list[Instruction]:
    """Files are not cut to nothing by who opens them to read: Landlock before 3 does not see it."""
    return [_argument(flags), (ANY_BIT, 1, 0, O_TRUNC), _return(ALLOW), (AND, 0, 0, O_ACCMODE),
            (EQUAL, 2, 0, 1), (EQUAL, 1, 0, 2), _return(FAIL | errno.EPERM), _return(ALLOW)]


def _null(pointer: int) -> list[Instruction]:
    return [_argument(pointer), (EQUAL, 0, 3, 0), _argument(pointer, high=True), (EQUAL, 0, 1, 0),
            _return(ALLOW), _return(FAIL | errno.EPERM)]


def _one_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    tests = [one for value in values for one in ((EQUAL, 0, 1, value), _return(ALLOW))]
    return [_argument(argument), *tests, _return(FAIL | errno.EPERM)]


def _on(nr: int, then: list[Instruction]) -> list[Instruction]:
    """Instructions that run where the call has a number; each way through them returns."""
    return [(EQUAL, 0, len(then), nr), *then]


def _load(offset: int) -> Instruction:
    return LOAD, 0, 0, offset


def _argument(index: int, high: bool = False) -> Instruction:
    return _load(ARGUMENTS + 8 * index + 4 * high)  # both machines are little-endian


def _return(action: int) -> Instruction:
    return RETURN, 0, 0, action
