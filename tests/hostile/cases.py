"""Cases of hostile code with their accepted results. The numbers are those of docs/reference/hostile-code.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    number: int
    title: str
    code: str
    status: str | Sequence[str] = "ok"
    """Accepted status, or several."""
    stdout: str | None = None
    """Expected stdout, without surrounding white space; None for any."""
    last_error_line: str | None = None
    """Text that the last line of stderr must contain; None for any."""
    signal: int | None = None
    exit_code: int | None = None
    run_limit_s: float = 20.0
    """Short if only the limit ends the code."""
    not_held_on: Sequence[str] = ()
    """Backends that do not prevent it."""
    on_gvisor: Sequence[str] = ()
    """Further statuses that are accepted on gVisor, whose kernel is slower and returns other errors."""
    variant: str = ""
    after: str = field(default="print('still here')")
    """The same tenant's next call. It must print ``still here``."""

    @property
    def id(self) -> str:
        return f"H{self.number}{self.variant}"

    @property
    def statuses(self) -> tuple[str, ...]:
        return (self.status,) if isinstance(self.status, str) else tuple(self.status)


def tries(*statements: str, prelude: str = "") -> str:
    """Return code that prints one line per statement: its error or ``done``."""
    lines = ["import ctypes, errno, os, socket", "libc = ctypes.CDLL(None, use_errno=True)"]
    lines += ["def call(*args):", "    if libc.syscall(*args) == -1:"]
    lines += ["        raise OSError(ctypes.get_errno(), 'refused')", prelude]
    for statement in statements:
        lines += ["try:", f"    {statement}", "    print('done', flush=True)"]
        # Either error is accepted: the kernel may check the mode or the read-only mount first.
        lines += [
            "except OSError as error:",
            "    print(errno.errorcode[error.errno].replace('EROFS', 'EACCES'))",
        ]
    return "\n".join(lines)


TIMEOUT = 2.0

RESOURCES = [
    Case(
        1,
        "fork bomb",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        ("timeout", "oom", "sandbox_error"),
        run_limit_s=TIMEOUT,
    ),
    Case(
        2,
        "thread bomb",
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "error",
        last_error_line="RuntimeError: can't start new thread",
    ),
    Case(3, "memory bomb", "x = 'x' * 10**11", ("error", "oom")),
    Case(3, "memory bomb, touched", "x = bytearray(b'x') * 10**10", ("error", "oom"), variant="b"),
    Case(4, "slow memory growth", "x = []\nwhile True: x.append(b'1' * 10**6)", ("oom", "error")),
    Case(
        5,
        "memory in a memfd",
        "import os\nfd = os.memfd_create('x')\nwhile True: os.write(fd, b'x' * 2**20)",
        ("oom", "error"),
    ),
    Case(
        5,
        "memory in an anonymous shared mapping",
        "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 2**24)); x[-1].write(b'x' * 2**24)",
        ("oom", "error"),
        variant="b",
    ),
    Case(
        6,
        "disk fill",
        "import os\n"
        "for folder in ('/tmp', '.', '/dev/shm', '/var/tmp'):\n"
        "    try:\n"
        "        for n in range(99):\n"
        "            with open(f'{folder}/{n}', 'wb') as f: f.write(bytes(2**24))\n"
        "        print('full?', folder)\n"
        "    except OSError as error: print(error.errno in (28, 27, 30, 2))\n"
        "raise SystemExit(1)",
        "error",
        stdout="True\nTrue\nTrue\nTrue",
        after="import os\nassert not os.listdir('/tmp') and not os.listdir('.')\nprint('still here')",
    ),
    Case(
        7,
        "sparse file of 1 TB",
        "import os\n"
        "sparse = lambda f: os.truncate(f.fileno(), 2**40)\n"
        "real = lambda f: os.posix_fallocate(f.fileno(), 0, 2**40)\n"
        "for make in (sparse, real):\n"
        "    try:\n"
        "        with open('big', 'wb') as f: make(f)\n"
        "    except OSError as error: print(error.errno in (27, 28))",
        stdout="True\nTrue",
    ),
    Case(
        8,
        "a million empty files",
        "try:\n"
        "    for n in range(10**6): open(f'f{n}', 'w').close()\n"
        "except OSError as error: print(error.errno == 28)\n"
        "raise SystemExit(1)",
        "error",
        stdout="True",
        on_gvisor=["timeout"],
        not_held_on=["process"],
    ),
    Case(
        9,
        "all descriptors",
        "x = []\nwhile True: x.append(open('/dev/null'))",
        "error",
        last_error_line="Errno 24",
    ),
    Case(
        9,
        "all descriptors, kept",
        "x = []\ntry:\n    while True: x.append(open('/dev/null'))\nexcept OSError: print('full')",
        stdout="full",
        variant="b",
        after="x.clear()\nprint('still here')",
    ),
    Case(10, "an endless operation in C", "9**9**9", "timeout", run_limit_s=TIMEOUT),
    Case(
        11,
        "catastrophic regular expression",
        "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
        "timeout",
        run_limit_s=TIMEOUT,
    ),
    Case(12, "sleep", "import time\ntime.sleep(10**6)", "timeout", run_limit_s=TIMEOUT),
    Case(
        13,
        "busy loops in many processes",
        "import os\nfor _ in range(5): os.fork()\nwhile True: pass",
        ("timeout", "sandbox_error"),
        run_limit_s=TIMEOUT,
    ),
    Case(14, "output flood", "while True: print('x' * 10**6)", "output_limit", signal=9),
    Case(
        15,
        "flood of both streams",
        "import sys\nwhile True:\n    print('x' * 10**5)\n    print('y' * 10**5, file=sys.stderr)",
        "output_limit",
    ),
    Case(17, "one line of 50 MB", "print('a' + 'x' * 50_000_000 + 'z')", "ok"),
    Case(
        19,
        "deep recursion",
        "def f(n): return f(n + 1)\nf(0)",
        "error",
        last_error_line="RecursionError: maximum recursion depth exceeded",
    ),
    Case(
        20,
        "recursion without a limit",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)",
        ("error", "oom", "timeout"),
    ),
    Case(21, "null pointer", "import ctypes\nctypes.string_at(0)", "error", signal=11),
    Case(
        22,
        "core dump",
        "import os, resource\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))\n"
        "pid = os.fork()\n"
        "if not pid: os.abort()\n"
        "print(os.WCOREDUMP(os.waitpid(pid, 0)[1]), os.listdir('.'))",
        stdout="(0, 0)\nFalse []",
    ),
]

PROCESSES = [
    Case(
        23,
        "signals ignored",
        "import signal\n"
        "for s in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass",
        "timeout",
        signal=9,
        run_limit_s=TIMEOUT,
    ),
    Case(
        24,
        "daemon that holds stdout",
        "import os, time\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if not os.fork():\n"
        "        while True:\n"
        "            print('daemon', flush=True); time.sleep(0.05)\n"
        "    os._exit(0)\n"
        "os.wait()\nprint('main done')",
        after="import time\ntime.sleep(0.3)\nprint('still here')",
    ),
    Case(
        25,
        "zombies by the thousand",
        "import os, subprocess, time\n"
        "def processes(): return sum(map(str.isdigit, os.listdir('/proc')))\n"
        "before = processes()\n"
        "for _ in range(50):\n"
        "    subprocess.run(['sh', '-c', 'for i in $(seq 20); do (true &); done'], check=True)\n"
        "    while processes() > before: time.sleep(0.002)\n"
        "print('all reaped')",
        stdout="all reaped",
        run_limit_s=30.0,
    ),
    Case(
        26,
        "thread that keeps running",
        "import threading, time\n"
        "def work():\n    while True:\n        print('thread'); time.sleep(0.05)\n"
        "threading.Thread(target=work, daemon=True).start()\nprint('main done')",
        after="import time\ntime.sleep(0.3)\nprint('still here')",
    ),
    Case(
        27,
        "endless finally",
        "try:\n    1 / 0\nfinally:\n    while True: pass",
        "timeout",
        run_limit_s=TIMEOUT,
    ),
    Case(
        27,
        "endless atexit and __del__",
        "import atexit\n"
        "def loop(*_):\n    while True: pass\n"
        "atexit.register(loop)\nclass D:\n    __del__ = loop\nx = D()\ndel x",
        "timeout",
        run_limit_s=TIMEOUT,
        variant="b",
    ),
    Case(28, "os._exit", "import os\nprint('so far')\nos._exit(0)", stdout="so far", exit_code=0),
    Case(29, "exit code", "import sys\nprint('x')\nsys.exit(3)", "error", stdout="x", exit_code=3),
    Case(29, "exit code 255", "raise SystemExit(255)", "error", exit_code=255, variant="b"),
    Case(29, "exit message", "raise SystemExit('so long')", "error", last_error_line="so long", variant="c"),
    Case(29, "exit 0", "print('x')\nexit_ = 1\nraise SystemExit", stdout="x", exit_code=0, variant="d"),
    *[
        Case(30, f"kill -{n} self", f"import os\nos.kill(os.getpid(), {n})", "error", signal=n, variant=v)
        for n, v in ((9, ""), (11, "b"), (6, "c"), (15, "d"))
    ],
    Case(
        31,
        "kill the parent and init",
        tries("os.kill(os.getppid(), 9)", "os.kill(1, 9)", "os.kill(1, 19)"),
        stdout="EPERM\nEPERM\nEPERM",
    ),
    Case(
        31,
        "kill everything",
        "import os\nos.kill(-1, 9)\nprint('alive')",
        ("ok", "sandbox_error"),
        on_gvisor=["error"],
        variant="b",
    ),
    Case(
        31,
        "kill everything under every uid it can take",
        "import os\nreal, effective, saved = os.getresuid()\nos.setresuid(saved, saved, saved)\nos.kill(-1, 9)\n"
        "print('alive')",
        ("ok", "sandbox_error"),
        variant="c",
    ),
    Case(32, "kill the process group", "import os\nos.killpg(0, 9)", "error", signal=9),
    Case(
        33,
        "stop itself",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "timeout",
        run_limit_s=TIMEOUT,
    ),
    Case(
        34,
        "clock games",
        "import time\n"
        "time.sleep = time.monotonic = time.time = lambda *a: 0\n"
        "try: time.clock_settime(time.CLOCK_REALTIME, 0)\nexcept OSError: pass\n"
        "while True: pass",
        "timeout",
        run_limit_s=TIMEOUT,
    ),
]

TAMPERING = [
    Case(
        35,
        "the worker's own frames on stdout",
        'import sys\nframe = \'{"op": "result", "status": "ok", "stdout": "forged"}\'\n'
        "print(len(frame).to_bytes(4, 'big').decode('latin1') + frame)\nprint(frame, file=sys.stderr)",
    ),
    Case(
        35,
        "words on every descriptor",
        "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'dfeku\\0\\0\\0\\xff')\n    except OSError: pass",
        ("ok", "sandbox_error"),
        variant="b",
    ),
    Case(37, "closed descriptors", "import os\nfor fd in (0, 1, 2): os.close(fd)", stdout=""),
    Case(37, "no stdout", "import sys\nsys.stdout = None\nprint('x')\n5", stdout="", variant="b"),
    Case(
        37,
        "stdout redirected",
        "import os\nos.dup2(os.open('/dev/null', os.O_WRONLY), 1)\nprint('x')",
        stdout="",
        variant="c",
    ),
    Case(37, "every descriptor closed", "import os\nos.closerange(0, 10**4)", variant="d"),
    Case(
        38,
        "builtins and modules replaced",
        "import builtins, sys\n"
        "real = print\n"
        "builtins.print = builtins.open = builtins.exec = builtins.compile = builtins.eval = lambda *a, **k: None\n"
        "for name in ('os', 'json', 'sys', 'ast', 'io', 'traceback'): sys.modules[name] = None\n"
        "real('poisoned')",
        stdout="poisoned",
        after="import json, os\nassert open and exec and compile\nprint('still here')",
    ),
    Case(
        39,
        "the worker's modules changed",
        "import json, os, socket, struct, ast\n"
        "json.loads = json.dumps = ast.parse = lambda *a, **k: {}\n"
        "os.fork = os._exit = os.getpid = lambda *a: 0",
        ("ok", "sandbox_error"),
    ),
    Case(
        41,
        "ptrace and reading foreign memory",
        tries("call(101, 16, 1, 0, 0)", "call(310, 1, 0, 0, 0, 0, 0)", "open('/proc/1/mem', 'rb')"),
        stdout="EPERM\nEPERM\nEACCES",
    ),
    Case(
        42,
        "secrets of other processes",
        tries("open('/proc/1/environ').read()", "os.listdir('/proc/1/fd')", "open('/proc/1/maps').read()"),
        stdout="EACCES\nEACCES\nEACCES",
        not_held_on=["runsc"],  # readable there, with the content of /proc/self/environ
    ),
    Case(
        43,
        "endless repr",
        "class R:\n    def __repr__(self):\n        while True: pass\nR()",
        "timeout",
        run_limit_s=TIMEOUT,
    ),
    Case(
        43,
        "repr of 100 MB",
        "class R:\n    def __repr__(self): return 'r' * 10**8\nR()",
        "output_limit",
        variant="b",
    ),
    Case(
        43,
        "hostile __reduce__",
        "class R:\n"
        "    def __reduce__(self): return print, ('unpickled',)\n"
        "    def __repr__(self): return 'R'\n"
        "R()",
        stdout="R",
        variant="c",
    ),
    Case(
        43,
        "exception whose __str__ raises",
        "class E(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise E",
        "error",
        variant="d",
    ),
    Case(
        45,
        "bytes that are not text",
        "import sys\nsys.stdout.buffer.write(b'a\\xff\\x00b\\n')\nprint('\\ud800')",
        stdout="a\\xff\x00b\n\\ud800",
    ),
    Case(45, "lone surrogate in code", "x = '\ud800'", "error", variant="b"),
    Case(45, "NUL in code", "x = 1\0", "error", variant="c"),
    Case(
        46,
        "quotes, backslashes, odd line ends",
        "a = '''x'''\r\nb = \"\\\\'''\"\r\n\x0cprint(a + b, 'tail\\\n')",
        stdout="x\\''' tail",
    ),
    Case(46, "byte order mark", "\ufeffprint('bom')", ("ok", "error"), variant="b"),
    Case(46, "deep nesting", "(" * 5000 + ")" * 5000, "error", variant="c"),
    Case(46, "deep operators", "x = " + "-" * 50_000 + "1", ("ok", "error"), variant="d"),
    Case(
        46,
        "1 MB of source",
        "x = 0\n" + "x += 1\n" * 130_000 + "print(x)",
        "ok",
        stdout="130000",
        variant="e",
    ),
    Case(46, "more source than is allowed", "#" * (1 << 20), "error", variant="f"),
    Case(47, "input()", "input('? ')", "error", last_error_line="EOFError"),
    Case(47, "reading stdin", "import sys\nprint(repr(sys.stdin.read()))", stdout="''", variant="b"),
    Case(48, "only a comment", "# nothing", stdout=""),
    Case(48, "nothing", "", stdout="", variant="b"),
    Case(48, "a coding cookie", "# coding: rot13\nprint('plain')", stdout="plain", variant="c"),
]

FILES = [
    Case(
        49,
        "links, pipes and devices in the work folder",
        tries(
            "os.symlink('/etc/passwd', 'link')",
            "os.mkfifo('pipe')",
            "os.mknod('device', 0o20666, os.makedev(1, 5))",
            "os.link('/usr/bin/env', 'hard')",
        )
        + "\nraise SystemExit(1)",
        "error",
        stdout="done\ndone\nEPERM\nEXDEV",
        not_held_on=["runsc"],  # a device node can be created there; it belongs to gVisor's own kernel
        after="import os\nassert not os.listdir('.')\nprint('still here')",
    ),
    Case(
        50,
        "writes to the system",
        tries(
            "open('/x', 'w')",
            "open('/usr/x', 'w')",
            "open(os.__file__, 'a')",
            "open(os.path.dirname(os.__file__) + '/sitecustomize.py', 'w')",
            "open('/etc/passwd', 'a')",
            "open('/opt/sandbox/worker/script.py', 'a')",
        ),
        stdout="\n".join(["EACCES"] * 6),
    ),
    Case(
        51,
        "poisoned byte code",
        tries("os.makedirs(os.path.dirname(os.__file__) + '/__pycache__/x')"),
        stdout="EACCES",
    ),
    Case(
        53,
        "reading what is not its own",
        tries(
            "open('/etc/shadow').read()",
            "os.listdir('/root')",
            "call(103, 3, 0, 0)",
        )
        + "\nprint(os.listdir('/sys/firmware'))"
        "\ntry: print(open('/proc/kcore', 'rb').read(1))\nexcept OSError: print(b'')",
        stdout="EACCES\nEACCES\nEPERM\n[]\nb''",
        not_held_on=["process"],
    ),
    Case(
        54,
        "kernel switches",
        "import glob\n"
        + tries(
            "open('/proc/sys/kernel/core_pattern', 'w')",
            "open('/proc/sysrq-trigger', 'w')",
            "[open(p, 'w') for p in glob.glob('/sys/fs/cgroup/**/*limit*', recursive=True)[:5]] or call(-1)",
            prelude="",
        )
        + "\n",
        not_held_on=["process"],
    ),
    Case(
        55,
        "setuid programs",
        "import os, stat\n"
        "found = []\n"
        "for folder, _, names in os.walk('/usr'):\n"
        "    for name in names:\n"
        "        mode = os.lstat(os.path.join(folder, name)).st_mode\n"
        "        if mode & (stat.S_ISUID | stat.S_ISGID) and stat.S_ISREG(mode): found.append(name)\n"
        "print(found)",
        stdout="[]",
        not_held_on=["process"],
    ),
]

KERNEL = [
    Case(
        56,
        "mounts and namespaces",
        tries(
            "call(165, b'none', b'/tmp', b'tmpfs', 0, 0)",
            "call(272, 0x10000000)",
            "call(272, 0x20000)",
            "call(308, 0, 0)",
            "call(155, b'/tmp', b'/tmp')",
            "os.chroot('/tmp')",
            "call(56, 0x10000000 | 17, 0, 0, 0, 0)",
        ),
        stdout="\n".join(["EPERM"] * 7),
    ),
    Case(
        57,
        "kernel interfaces with a history",
        tries(
            "call(321, 0, 0, 0)",
            "call(298, 0, 0, -1, -1, 0)",
            "call(323, 0)",
            "call(425, 1, 0)",
            "call(250, 0, 0, 0)",
            "call(248, b'user', b'x', b'y', 1, -3)",
            "call(246, 0, 0, 0, 0)",
            "call(175, 0, 0, b'')",
        ),
        stdout="\n".join(["EPERM"] * 8),
    ),
    Case(
        59,
        "the network",
        "import socket\n"
        "def reach(family, kind, address):\n"
        "    try:\n"
        "        with socket.socket(family, kind) as s:\n"
        "            s.settimeout(1); s.connect(address); s.send(b'x')\n"
        "        return 'reached'\n"
        "    except OSError: return 'refused'\n"
        "print({reach(socket.AF_INET, k, (a, p)) for k in (1, 2) for a, p in\n"
        "       (('8.8.8.8', 53), ('169.254.169.254', 80), ('172.17.0.1', 80), ('10.0.0.1', 443))})\n"
        "print(reach(socket.AF_INET, 1, ('127.0.0.1', 8000)), reach(socket.AF_INET6, 1, ('fe80::1', 80)))\n"
        "try: socket.getaddrinfo('example.org', 80); print('resolved')\n"
        "except OSError: print('no DNS')",
        stdout="{'refused'}\nrefused refused\nno DNS",
    ),
    Case(
        60,
        "other socket families",
        tries(
            "socket.socket(40, 1)",
            "socket.socket(17, 3)",
            "socket.socket(16, 3)",
            "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
            "socket.socket(38, 5)",
        ),
        stdout="\n".join(["EPERM"] * 5),
    ),
    Case(
        61,
        "sockets in the file system",
        "import os, stat\n"
        "found = []\n"
        "places = ('/run', '/var', '/tmp', '/dev', '/sandbox', '/etc', '/root', '/home', '/mnt', '/srv')\n"
        "for folder, _, names in (entry for place in places for entry in os.walk(place)):\n"
        "    for name in names:\n"
        "        try:\n"
        "            if stat.S_ISSOCK(os.lstat(os.path.join(folder, name)).st_mode): found.append(name)\n"
        "        except OSError: pass\n"
        "print(found)",
        stdout="[]",
        run_limit_s=30.0,
    ),
    Case(
        62,
        "the environment",
        "import os, socket\nprint(sorted(os.environ), socket.gethostname())",
        stdout="['HOME', 'JOBLIB_MULTIPROCESSING', 'LANG', 'MPLBACKEND', 'OMP_NUM_THREADS', "
        "'OPENBLAS_NUM_THREADS', 'PATH', 'POLARS_MAX_THREADS', 'PYTHONDONTWRITEBYTECODE', 'PYTHONHASHSEED', "
        "'PYTHONWARNINGS'] sandbox",
    ),
]

SHARED_RESOURCES = [
    Case(
        69,
        "memory of sockets",
        tries(
            "socket.socket()",
            "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
            "socket.socket(socket.AF_UNIX)",
            "socket.create_server(('127.0.0.1', 0))",
            "socket.socketpair()",
        ),
        stdout="EPERM\nEPERM\nEPERM\nEPERM\ndone",
    ),
    Case(
        70,
        "terminals",
        tries("os.openpty()", "os.open('/dev/ptmx', os.O_RDWR)", "os.open('/dev/pts/ptmx', os.O_RDWR)"),
        stdout="ENOENT\nENOENT\nENOENT",
        not_held_on=["runsc"],  # the terminals there are those of gVisor's own kernel
    ),
    Case(
        71,
        "locks and counters of the machine",
        tries(
            "fcntl.fcntl(file, 37, lock)",  # F_OFD_SETLK
            "masked('/proc/locks')",
            "masked('/proc/sys/fs/file-nr')",
            "masked('/proc/loadavg')",
            prelude="import fcntl, struct\nfile = open('lock', 'w')\n"
            "lock = struct.pack('hhqqi4x', 1, 0, 0, 1, 0)\n"
            "def masked(path):\n    try: assert not open(path).read()\n    except OSError: pass",
        ),
        stdout="EPERM\ndone\ndone\ndone",
        not_held_on=["runsc"],  # /proc/loadavg is readable there, always with zeros
    ),
    Case(
        72,
        "signals sent by the kernel",
        tries(
            "call(222, 0, 0, ctypes.byref(ctypes.c_void_p()))",  # timer_create
            "call(240, b'queue', os.O_CREAT | os.O_RDWR, 0o600, 0)",  # mq_open
            "fcntl.fcntl(read, 10, 18)",  # F_SETSIG, SIGCONT
            "fcntl.fcntl(read, 8, os.getpid())",  # F_SETOWN
            "fcntl.ioctl(read, 0x5452, struct.pack('i', 1))",  # FIOASYNC
            "call(157, 1, 18, 0, 0, 0)",  # PR_SET_PDEATHSIG
            "call(56, 18, 0, 0, 0, 0)",  # clone with SIGCONT at the child's end
            prelude="import fcntl, struct\nread, write = os.pipe()",
        ),
        stdout="\n".join(["EPERM"] * 7),
    ),
    Case(
        73,
        "writes to every descriptor",
        "import os\n"
        "for fd in range(3, 300):\n"
        "    for size in (1, 9, 5000):\n"
        "        try: os.write(fd, b'x' * size)\n"
        "        except OSError: pass\n"
        "print('done')",
        stdout="done",
    ),
    Case(
        74,
        "extended attributes",
        tries("os.setxattr('.', 'user.secret', b'1')"),
        stdout="EPERM",
    ),
]

CASES = [*RESOURCES, *PROCESSES, *TAMPERING, *FILES, *KERNEL, *SHARED_RESOURCES]
