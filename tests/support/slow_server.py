"""The server of `service.server.run` as a process, around a slow scripted engine. Argument: ``DRAIN_S``."""

from __future__ import annotations

import sys

from service.server.run import _bind, _Server
from tests.support.scripted import EOS, ScriptedEngine, ScriptedSandbox, printed
from tests.support.serving import make_app, settings

if __name__ == "__main__":
    drain_s = int(sys.argv[1])
    engine = ScriptedEngine("word " * 60 + EOS, delay_s=0.01)
    options = settings(drain_s=drain_s)
    app = make_app(engine, ScriptedSandbox(lambda blocks: printed("")), drain_s=drain_s)
    with _bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        print(f"PORT {port}", flush=True)
        _Server(app, options, port).run(sockets=[listener])
