"""Programs that mean harm, or that want to pass without a right answer.

What one gets away with it prints as "escaped: ...", which no line of an honest refusal begins with.
Where a wall had a hole, an attempt would do no harm to the machine that tests: signals are of kind
0, and what is changed lies in the test's own folder.
"""

EXPECTED = 7919 * 7907
TRY = """
import ctypes, os, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, do):
    try:
        result = do()
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        print("refused:", name, error)
    else:
        if isinstance(result, int) and result == -1:
            print("refused:", name)
        else:
            print("escaped:", name, str(result)[:200])
"""
FILES = TRY + """
here = {here!r}
for path in (here + "/secret.txt", {data!r}, "/etc/passwd", "/proc/self/environ", "/proc/self/maps",
             "/proc/self/mem", f"/proc/{os.getppid()}/environ", f"/proc/{os.getppid()}/cmdline",
             f"/proc/{os.getppid()}/fd/0", "/proc/1/cmdline", "/dev/mem", "/dev/shm/x",
             {packages!r}, {project!r}, *{beside!r}):
    attempt("read " + path, lambda: open(path, "rb").read(20))
attempt("cut", lambda: os.close(os.open(here + "/secret.txt", os.O_RDONLY | os.O_TRUNC)))
for folder in (here, "/", "/proc", "/proc/self/fd", "/root", "/home", "/tmp", {packages!r}):
    attempt("list " + folder, lambda: os.listdir(folder))
attempt("write outside", lambda: open(here + "/new.txt", "w").write("x"))
attempt("write over", lambda: open(here + "/secret.txt", "r+").write("x"))
attempt("write above", lambda: open("../new.txt", "w").write("x"))
attempt("rename", lambda: os.rename(here + "/secret.txt", here + "/other.txt"))
attempt("take", lambda: os.rename(here + "/secret.txt", "taken.txt"))
attempt("remove", lambda: os.remove(here + "/secret.txt"))
attempt("remove a folder", lambda: os.rmdir(here + "/empty"))
attempt("hard link", lambda: os.link(here + "/secret.txt", "link.txt"))
attempt("symbolic link", lambda: os.symlink(here + "/secret.txt", "link.txt"))
attempt("folder", lambda: os.mkdir("folder"))
attempt("pipe", lambda: os.mkfifo("fifo"))
attempt("mode", lambda: os.chmod(here + "/secret.txt", 0))
attempt("owner", lambda: os.chown(here + "/secret.txt", 1, 1))
attempt("times", lambda: os.utime(here + "/secret.txt", (1, 1)))
attempt("truncate", lambda: os.truncate(here + "/secret.txt", 0))
attempt("mount", lambda: libc.mount(b"none", (here + "/empty").encode(), b"tmpfs", 0, None))
attempt("root folder", lambda: os.chroot("."))
open("inside.txt", "w").write("this is allowed")
assert open("inside.txt").read() == "this is allowed"
"""
PROCESSES = TRY + """
attempt("fork", os.fork)
attempt("vfork", lambda: libc.vfork())
attempt("posix_spawn", lambda: os.posix_spawn(sys.executable, [sys.executable], {}))
attempt("exec", lambda: os.execv(sys.executable, [sys.executable, "-c", "print('escaped: exec')"]))
attempt("shell", lambda: subprocess.run("echo escaped: shell", shell=True, check=True))
attempt("system", lambda: -1 if os.system("echo escaped: system") else 0)
attempt("kill the parent", lambda: os.kill(os.getppid(), 0))
attempt("kill all", lambda: os.kill(-1, 0))
attempt("kill a group", lambda: os.killpg(os.getpgid(os.getppid()), 0))
attempt("probe", lambda: os.kill(1, 0))
attempt("pidfd", lambda: os.pidfd_open(os.getppid()))
attempt("trace", lambda: libc.ptrace(16, os.getppid(), 0, 0))
attempt("its memory", lambda: libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0))
attempt("limits", lambda: __import__("resource").setrlimit(7, (1 << 16, 1 << 16)))
attempt("limits of the parent", lambda: __import__("resource").prlimit(os.getppid(), 4, (0, 0)))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))
attempt("another user", lambda: os.setuid(65534))
attempt("death signal", lambda: libc.prctl(1, 0, 0, 0, 0))
attempt("namespaces", lambda: libc.unshare(0x10000000))
import fcntl
reads, writes = os.pipe()
attempt("signals by a pipe", lambda: fcntl.fcntl(reads, fcntl.F_SETOWN, os.getppid()))
attempt("their kind", lambda: fcntl.fcntl(reads, 10, 9))
for name, number in (("io_uring", 425), ("memfd", 319), ("bpf", 321), ("keys", 250), ("shm", 29),
                     ("clone3", 435), ("landlock", 444), ("x32", 0x40000039)):
    attempt(name, lambda: libc.syscall(number, 0, 0, 0, 0, 0))
"""
SOCKETS = TRY + """
for family in (1, 2, 10, 16, 17, 38, 40):
    for kind in (1, 2, 3):
        attempt(f"socket {family} {kind}", lambda: socket.socket(family, kind))
attempt("connection", lambda: socket.create_connection(("127.0.0.1", {port}), 1))
attempt("a name", lambda: socket.getaddrinfo("localhost", {port}))
pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
attempt("datagram", lambda: pair[0].sendto(b"hello", {address!r}))
attempt("message", lambda: pair[0].sendmsg([b"hello"], [], 0, {address!r}))
pair[0].send(b"to itself")
assert pair[1].recv(9) == b"to itself"
import asyncio
assert asyncio.run(asyncio.sleep(0, 5)) == 5
"""
# Those that end in some limit: (name, what the function does, endings that are right).
ENDLESS = [
    ("loop", "while True: pass", {"cpu"}),
    ("one long computation", "return 9 ** 9 ** 9", {"cpu"}),
    ("signals ignored", "import signal\n    for s in set(signal.valid_signals()) - {9, 19}:\n"
     "        signal.signal(s, signal.SIG_IGN)\n    while True: pass", {"cpu"}),
    ("errors caught", "while True:\n        try:\n            while True: pass\n"
     "        except BaseException: pass", {"cpu"}),
    ("one block", "return len(bytearray(1 << 40))", {"raised"}),
    ("many blocks", "kept = []\n    while True: kept.append(bytearray(1 << 20))", {"raised"}),
    ("memory, caught", "kept = []\n    while True:\n        try: kept.append(bytearray(1 << 24))\n"
     "        except MemoryError: pass", {"cpu"}),
    ("depth", "import sys; sys.setrecursionlimit(10**9); f = lambda: f(); f()",
     {"killed", "raised", "cpu"}),
    ("nesting", "x = []\n    for _ in range(10**6): x = [x]\n    return x",
     {"killed", "raised", "cpu"}),
    ("output", "while True: print('x' * (1 << 16))", {"output"}),
    ("errors printed", "import os\n    while True: os.write(2, b'x' * (1 << 16))", {"output"}),
    ("a big file", "f = open('big', 'wb')\n    while True: f.write(bytes(1 << 20))", {"raised"}),
    ("a file with a hole", "import os; os.truncate(os.open('big', 65), 1 << 40)", {"raised"}),
    ("many files", "for i in range(10**6): open(f'{i}', 'w').close()\n    import time\n"
     "    time.sleep(1000)", {"disk"}),
    ("files that are full", "for i in range(30): open(f'{i}', 'wb').write(bytes(1 << 20))\n"
     "    import time; time.sleep(1000)", {"disk"}),
    ("open files", "kept = [open(f'{i % 2}', 'w') for i in range(10**6)]", {"raised"}),
    ("threads", "import threading, time\n    threading.stack_size(1 << 15)\n    while True: "
     "threading.Thread(target=time.sleep, args=(1000,)).start()", {"threads", "raised"}),
    ("threads that wait", "import threading, time\n    threading.stack_size(1 << 17)\n"
     "    for _ in range(40): threading.Thread(target=time.sleep, args=(1000,)).start()\n"
     "    time.sleep(1000)", {"threads"}),
    ("forks", "import os\n    while True: os.fork()", {"raised"}),
    ("pools", "import multiprocessing\n    with multiprocessing.Pool(4) as p: p.map(abs, [1])",
     {"raised"}),
    ("a daemon", "import os\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork(): "
     "os._exit(0)\n        while True: pass", {"raised"}),
    ("threads left", "import threading\n    def go():\n        while True: pass\n"
     "    threading.Thread(target=go).start()", {"raised"}),
    ("input", "return input()", {"raised"}),
]
# Those that want to pass: (name, the whole program).
CHEATS = [
    ("exit", "import sys\nsys.exit(0)"),
    ("exit in the call", "import sys\ndef f(x): sys.exit(0)"),
    ("hard exit", "import os\nos._exit(0)"),
    ("hard exit in the call", "import os\ndef f(x): os._exit(0)"),
    ("hard exit from a thread", "import os, threading, time\ndef f(x):\n    threading.Timer(0, "
     "os._exit, (0,)).start()\n    time.sleep(9)"),
    ("stopped", "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGTERM)"),
    ("no function", "pass"),
    ("no program", "def f(x:"),
    ("no function any more", "f = 3"),
    ("assert that is none", "import builtins\nbuiltins.AssertionError = AssertionError = int\n"
     "builtins.__dict__['__debug__'] = False\ndef f(x): return 0"),
    ("equal to all", "class Yes:\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\n"
     "    __hash__ = None\ndef f(x): return Yes()"),
    ("a number equal to all", "class Yes(int):\n    __eq__ = lambda *_: True\n"
     "    __hash__ = int.__hash__\ndef f(x): return Yes(1)"),
    ("the check's name", "def check(f): pass\ndef f(x): return 0"),
    ("patched builtins", "import builtins\nfor name in ('exec', 'compile', 'isinstance', 'type', "
     "'len'):\n    setattr(builtins, name, lambda *_, **__: True)\ndef f(x): return 0"),
    ("marks of success", "print('ok', 'passed', True, 'end', '{\"error\": null}', flush=True)\n"
     "def f(x): return 0"),
    ("messages of its own", "import os, struct\nfor m in (b'{\"error\": null}\\n', b'ready\\n'):\n"
     "    for end in range(3, 32):\n        try: os.write(end, struct.pack('<I', len(m)) + m)\n"
     "        except OSError: pass\n        try: os.write(end, m)\n        except OSError: pass\n"
     "def f(x): return 0"),
    ("an answer that is none", "import os, struct\ndef f(x):\n    m = b'{\"value\": {\"type\": "
     "\"exec\"}}'\n    os.write(4, struct.pack('<I', len(m)) + m)"),
    ("another object's number", "import os, struct\ndef f(x):\n    m = b'{\"value\": "
     "{\"object\": 99}}'\n    os.write(4, struct.pack('<I', len(m)) + m)"),
    ("an endless message", "import os\ndef f(x):\n    os.write(4, b'\\xff' * 4 + b'x' * 1000)\n"
     "    return 0"),
    ("a report that is deep", "import os\nos.write(5, b'[' * 4000 + b'\\n')\ndef f(x): return 0"),
    ("a report that is no text", "import os\nos.write(5, b'\\xff\\n{}\\n')\ndef f(x): return 0"),
    ("a name that is no text", "import ctypes, time\nctypes.CDLL(None).prctl(15, b')\\xff ')\n"
     "def f(x): time.sleep(0.2); return 0"),
    ("errors that are no text", "class Odd(Exception):\n    __str__ = lambda self: 1 / 0\n"
     "def f(x): raise Odd"),
    ("no pipes", "import os\nos.closerange(3, 64)\ndef f(x): return 0"),
    ("settings", "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
     "sys.excepthook = lambda *a: None\nimport atexit\natexit.register(lambda: None)\n"
     "def f(x): return 0"),
]
SEEK = """
import ctypes, gc, os, sys
def f(x):
    backwards, seen = {want!r}, []  # so that it finds no copy of its own
    frame = sys._getframe()
    while frame:
        seen += [repr(frame.f_locals), repr(frame.f_globals), repr(frame.f_code.co_consts)]
        frame = frame.f_back
    seen += [repr(o) for o in gc.get_objects() if type(o) in (dict, list, tuple, str, bytes)]
    for end in range(64):
        try:
            os.set_blocking(end, False)
            seen.append(repr(os.read(end, 1 << 20)))
        except OSError:
            pass
    start = id(backwards) & ~0xFFF  # the pages around, straight from memory
    seen.append(repr(ctypes.string_at(start, 0x1000)))
    print("found" if any(backwards in one[::-1] for one in seen) else "not found", len(seen))
    return 0
"""
