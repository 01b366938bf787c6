"""Random programs of several flushes, and a reference that runs them in a new interpreter.

Statements are grouped by the state that they touch. A program mixes one or two groups, so that its blocks
work on the same objects. Everything that it prints must be the same in each run: no addresses, process ids or
times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

BASIC: Final = [
    "a = 3",
    "a = a + 1",
    "b = [a]",
    "b.append(a)\nprint(b)",
    "print(a, end='')",
    "a",
    "b",
    "None",
    "'text'",
    '"""several\nlines"""',
    "print(__doc__)",
    "1 / 0",
    "raise ValueError('mine')",
    "raise SystemExit",
    "raise SystemExit(2)",
    "raise SystemExit('bye')",
    "import os\nos._exit(3)",
    "import os\nos.kill(os.getpid(), 9)",
    "def f(n):\n    return n * a",
    "print(f(2))",
    "f(3)",
    "if a == 3:\n    print('three')",
    "else:\n    print('other')",
    "for i in range(2):",
    "    print('indented')",
    "x = (1,",
    "2)",
    "x = 1 + \\",
    "y = '''open",
    "return 5",
    "from __future__ import annotations",
    "def g(q: undefined): pass",
    "z: int = 1\nprint(__annotations__)",
    "print(sorted(name for name in globals() if name.startswith('__')))",
    "global a",
    "c = 1000.5\nd = 1000.5",
    "e = 1000.5\nprint(e is d)",
    "import sys\nsys.stderr.write('warned\\n')",
    "print('ü\\0\\ud800')",
    "import os\nos.environ['MINE'] = 'set'\nprint(os.environ.get('MINE'))",
    "import sys, io\nsys.stdout = io.StringIO()",
    "class D:\n    def __del__(self): print('gone')\n    def __repr__(self): return 'D'\nD()",
    "# only a comment",
    "",
]
RANDOMNESS: Final = [
    "random.seed(42)",
    "print(random.random())",
    "order = list(range(9))\nrandom.shuffle(order)\nprint(order)",
    "random.random()\n1 / 0",
    "own = random.Random(3)",
    "print(own.randint(1, 1000))",
    "print(own.gauss(0, 1))",
    "state = random.getstate()",
    "random.setstate(state)",
    "np.random.seed(5)",
    "print(np.random.rand())",
    "np.random.rand(3)\nundefined",
    "generator = np.random.default_rng(2)",
    "print(generator.integers(1000, size=3))",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "import sympy\nprint(sympy.nextprime(random.randint(10, 10**6)))",
]
FILES: Final = [
    "f = open('d', 'w+')",
    "f.write('one\\ntwo\\n')",
    "f.flush()",
    "f.write('unflushed')",
    "print(f.tell())",
    "f.seek(0)",
    "print(repr(f.readline()))",
    "print(repr(f.read()))",
    "f.truncate(2)",
    "f.close()",
    "f = open('d')",
    "print(next(f, None))",
    "fd = os.open('e', os.O_RDWR | os.O_CREAT | os.O_APPEND)",
    "os.write(fd, b'xyz')",
    "print(os.lseek(fd, 0, os.SEEK_CUR), os.fstat(fd).st_size)",
    "os.lseek(fd, 0, os.SEEK_SET)",
    "print(os.read(fd, 2))",
    "os.unlink('d')",
    "os.rename('d', 'renamed')",
    "os.makedirs('deep/er', exist_ok=True)",
    "os.chdir('deep')",
    "print(sorted(os.listdir('.')), os.getcwd())",
    "print(open('d').read())",
    "undefined",
    "import json\njson.dump([1, 2], open('j', 'w'))\nprint(json.load(open('j')))",
    "import tempfile\nt = tempfile.TemporaryFile('w+')\nt.write('temporary')",
    "t.seek(0)\nprint(t.read())",
]
OUTPUT: Final = [
    "print('a', end='')",
    "os.system('echo b')",
    "subprocess.run(['echo', 'c'])\nNone",
    "print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout)",
    "subprocess.Popen(['sleep', '60'])\nprint('left one behind')",
    "sys.stderr.write('e')",
    "sys.stdout.buffer.write(b'raw')",
    "os.write(1, b'direct')",
    "print('ü', end='', flush=True)",
    "sys.stdout.write('no newline')",
    "print(*range(50))",
    "print('x' * 3000)",
    "subprocess.run(['false'], check=True)",
    "os.system('echo to stderr >&2')",
    "import warnings\nwarnings.warn('hidden')",
    "import logging\nlogging.warning('logged')",
    "1 / 0",
    FORK := "import os\nif child := os.fork(): os.waitpid(child, 0)\nelse: print('in the fork')",
]
THREADS: Final = [
    "t = threading.Thread(target=print, args=('thread',))\nt.start()\nt.join()",
    "threading.Thread(target=lambda: (time.sleep(1.5), os.write(1, b'late\\n'))).start()",
    "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "go = threading.Event()\ntry:\n    while True:\n"
    "        threading.Thread(target=go.wait, daemon=True).start()\nexcept RuntimeError: print('the limit')",
    "go.set()",
    "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(3) as pool: print(list(pool.map(lambda n: n * n, range(5))))",
    "lock = threading.Lock()\nlock.acquire()",
    "print(lock.locked())",
    "lock.release()",
    "local = threading.local()\nlocal.value = 1",
    "print(local.value)",
    "print('main')",
    "try:\n    for _ in range(70):\n"
    "        if not os.fork(): time.sleep(0.2); os._exit(0)\nexcept OSError: pass",
    "undefined",
]
SHARED: Final = [
    "r, w = os.pipe()\nos.set_blocking(r, False)",
    "os.write(w, b'xy')",
    "print(os.read(r, 1))",
    "import multiprocessing\nv = multiprocessing.Value('i', 0)",
    "v.value += 1\nprint(v.value)",
    "import mmap\nm = mmap.mmap(-1, 4096)",
    "m[0] += 1\nprint(m[0])",
    "import socket\nleft, right = socket.socketpair()\nright.setblocking(False)",
    "left.send(b'z')",
    "print(right.recv(1))",
    "fd = os.memfd_create('m')",
    "os.write(fd, b'm')\nprint(os.lseek(fd, 0, os.SEEK_CUR))",
    "print('nothing shared')",
]
LIBRARIES: Final = [
    "np.set_printoptions(precision=3)",
    "print(np.pi * np.ones(2))",
    "np.seterr(all='raise')",
    "print(np.float64(1) / np.float64(0))",
    "mpmath.mp.dps = 30",
    "print(mpmath.pi)",
    "x = sympy.Symbol('x', positive=True)",
    "print(sympy.integrate(x**2, x))",
    "sympy.solve(x**2 - 2, x)",
    "sympy.expand((x + 1)**3)",
    "m = np.arange(4).reshape(2, 2)",
    "m[0, 0] += 1\nprint(m)",
    "np.linalg.inv(np.zeros((2, 2)))",
    "from decimal import Decimal, getcontext\ngetcontext().prec = 5",
    "print(Decimal(1) / Decimal(7))",
    "from dataclasses import dataclass\n@dataclass\nclass P:\n    n: int\nprint(P(3), P.__annotations__)",
    "import functools\n@functools.cache\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
    "print(fib(30), fib.cache_info())",
]
TRACEBACKS: Final = [
    "def f(n):\n    if n == 0:\n        raise KeyError(n)\n    return f(n - 1)",
    "f(3)",
    "try:\n    f(1)\nexcept KeyError as error:\n    raise ValueError('chained') from error",
    "try:\n    f(0)\nexcept Exception:\n    traceback.print_exc()",
    "try:\n    f(0)\nexcept Exception:\n    print(traceback.format_exc())",
    "print('line', sys._getframe().f_lineno)",
    "print([frame.lineno for frame in traceback.extract_stack() if frame.filename.startswith('<call')])",
    "x = (1 +\n     undefined +\n     2)",
    "assert (1,\n        2) == 3, 'not equal'",
    "print('before')",
    "[n for n in (1, 2, 0) if 1 / n]",
    "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
    "def deep(n): return deep(n + 1)",
    "try: deep(0)\nexcept RecursionError as error: print(error)",
    "class Bad:\n    def __repr__(self): raise ValueError('no repr')",
    "Bad()",
    "lambda: 0\nprint((lambda: 0).__code__.co_firstlineno)",
    "import inspect\nprint(inspect.getsource(f))",
    "print(sys._getframe().f_code.co_firstlineno)",
    "exec('1 / 0')",
    "eval('undefined')",
]
LITERALS: Final = [
    f"big = [{', '.join(map(str, range(20_000)))}]",
    "print(len(big), sum(big))",
    f"text = {'x' * 50_000!r}\nprint(len(text))",
    "\n".join(f"name_{number} = {number}" for number in range(1000)),
    "print(name_999)",
    "table = {" + ", ".join(f"'key {n}': [{n}, ({n},)]" for n in range(3000)) + "}",
    "print(table['key 7'])",
    "big.append(undefined)",
]
LONG: Final = {f"literal {n}": text for n, text in enumerate(LITERALS) if len(text) > 1000}
GROUPS: Final = {
    "basic": ("", BASIC),
    "randomness": ("import random\nimport numpy as np\nrandom.seed(1)\nnp.random.seed(1)", RANDOMNESS),
    "files": ("import os", FILES),
    "output": ("import os, subprocess, sys", OUTPUT),
    "threads": ("import os, threading, time", THREADS),
    "shared": ("import os", SHARED),
    "libraries": ("import mpmath, sympy\nimport numpy as np", LIBRARIES),
    "tracebacks": ("import sys, traceback", TRACEBACKS),
    "literals": ("", LITERALS),
}
"""For each group, the code of the first flush and the statements of all others."""
WITHOUT_REFERENCE: Final = {"threads", "shared"}
"""A program that keeps threads, pipes or shared memory from one flush to the next can't be replayed."""

FORGET: Final = """
import os, shutil
os.chdir('/sandbox')
for _p in ('.', '/tmp', '/dev/shm'):
    for _n in os.listdir(_p):
        _q = os.path.join(_p, _n)
        shutil.rmtree(_q) if os.path.isdir(_q) and not os.path.islink(_q) else os.unlink(_q)
for _n in ('__annotations__', '__warningregistry__'): globals().pop(_n, None)
for _n in [n for n in globals() if not n.startswith('__')]: del globals()[_n]
__doc__ = None
import decimal, gc, logging, os, mpmath, numpy
gc.collect()
os.closerange(3, 200)
os.environ.pop('MINE', None)
numpy.set_printoptions(precision=8)
numpy.seterr(divide='warn', over='warn', under='ignore', invalid='warn')
mpmath.mp.dps = 15
decimal.getcontext().prec = 28
logging.getLogger().handlers.clear()
del decimal, gc, logging, os, mpmath, numpy
"""
"""Run between two programs of a session."""


@dataclass(frozen=True, slots=True)
class Program:
    """A random program: flushes, which are lists of blocks."""

    flushes: list[list[str]]
    can_replay: bool
    """Whether the reference can run it."""

    def __repr__(self) -> str:
        """Return the code, with long literals shortened."""
        flushes = [list(flush) for flush in self.flushes]
        for flush in flushes:
            for name, statement in LONG.items():
                flush[:] = [block.replace(statement, f"<{name}>") for block in flush]
        return f"Program({flushes!r}, {self.can_replay})"


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Programs that mix one or two groups."""
    names = draw(st.lists(st.sampled_from(sorted(GROUPS)), min_size=1, max_size=2, unique=True))
    first = [GROUPS[name][0] for name in names if GROUPS[name][0]]
    statements = [statement for name in names for statement in GROUPS[name][1]]
    if {"output", "randomness"} <= set(names):
        statements.remove(FORK)  # a forked process gets a new seed, and runs the rest as well
    block = st.lists(st.sampled_from(statements), max_size=3).map("\n".join)
    several = st.lists(block, min_size=1, max_size=4)
    many = st.lists(st.sampled_from(["count = 0", "count += 1", "print(count)"]), min_size=20, max_size=40)
    rare = st.integers(0, 15).flatmap(lambda n: many if n == 0 else several)
    flushes = draw(st.lists(rare, min_size=1, max_size=4))
    return Program(([first] if first else []) + flushes, not WITHOUT_REFERENCE & set(names))


_REFERENCE = r"""
import ast, io, json, linecache, os, sys, threading, traceback, types

def finish(code):
    for stream in (sys.stdout, sys.stderr):
        try: stream.flush()
        except BaseException: pass
    os._exit(code)

def stream(fd):
    raw = open(fd, 'wb', buffering=0, closefd=False)
    return io.TextIOWrapper(raw, encoding='utf-8', errors='backslashreplace', write_through=True)

flushes = json.load(open(0, closefd=False))
main = sys.modules['__main__'] = types.ModuleType('__main__')
main.__annotations__ = {}  # as the module that it replaces
pid, out, err = os.getpid(), os.dup(1), os.dup(2)
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0)
for number, (name, source) in enumerate(flushes):
    shown = number == len(flushes) - 1
    os.dup2(out if shown else null, 1)
    os.dup2(err if shown else null, 2)
    if shown:
        for fd in (out, err, null): os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), stream(1), stream(2)
    stderr = sys.stderr
    linecache.cache[name] = (len(source), None, (source + '\n').splitlines(True), name)
    try:
        tree = compile(source, name, 'exec', ast.PyCF_ONLY_AST)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, 'exec'), main.__dict__)
        value = eval(compile(ast.Expression(last.value), name, 'eval'), main.__dict__) if last else None
        if os.getpid() != pid: finish(0)
        if value is not None:
            text = repr(value)
            if sys.stdout is not None: sys.stdout.write(text + '\n')
        del value
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread(): thread.join()
    except SystemExit as leaving:
        code = leaving.code
        if code is not None and not isinstance(code, int):
            stderr.write(f'{code}\n')
            code = 1
        if code: finish(code)
    except BaseException as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != name: frames = frames.tb_next
        traceback.print_exception(type(error), error, frames, file=stderr)
        finish(1)
finish(0)
"""


def reference(flushes: list[tuple[str, str]]) -> str:
    """Return code that runs scripts in a new interpreter, all but the last one without output.

    It prints a JSON list: the exit code as ``subprocess`` reports it, stdout and stderr of the last script.

    Args:
        flushes: the name and the source of each script.
    """
    return (
        "import json, os, shutil, subprocess, sys\n"
        "for p in ('/sandbox', '/tmp', '/dev/shm'):\n"
        "    for n in os.listdir(p):\n"
        "        q = os.path.join(p, n)\n"
        "        shutil.rmtree(q) if os.path.isdir(q) and not os.path.islink(q) else os.unlink(q)\n"
        f"given, program = {json.dumps(flushes)!r}, {_REFERENCE!r}\n"
        "files = [os.memfd_create(n) for n in ('in', 'out', 'err')]\n"
        "os.write(files[0], given.encode())\nos.lseek(files[0], 0, 0)\n"
        "python = [sys.executable, '-u', '-B', '-s', '-W', 'ignore', '-c', program]\n"
        "streams = dict(zip(('stdin', 'stdout', 'stderr'), files))\n"
        "done = subprocess.run(python, cwd='/sandbox', **streams)\n"
        "data = [open(f'/proc/self/fd/{f}', 'rb').read() for f in files[1:]]\n"
        "texts = [d.decode('utf-8', 'backslashreplace') for d in data]\n"
        "for f in files: os.close(f)\n"
        "print(json.dumps([done.returncode, *texts]))\n"
    )
