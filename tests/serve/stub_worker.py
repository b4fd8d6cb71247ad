"""A worker without a model, for tests of what holds workers: it starts at once and does as the request's body says.

Bodies: `wait S`, `die`, `hang`; anything else comes back as it is. A model that is called bad, in its folder's name or in
its config.json, is refused.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from petalite.serve.wire import CONTROL, Answer, Ask, read_asks


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    models = json.loads(sys.argv[2])["models"]
    texts = {name: _config(folder) for name, (folder, _) in models.items()}
    if any("bad" in shown + texts[name] for name, (_, shown) in models.items()):
        sock.sendall(Answer(CONTROL, 500, json.dumps("the checkpoint is damaged").encode()).frame())
        return
    facts = {name: {"checkpoint": shown, "config": texts[name]} for name, (_, shown) in models.items()}
    sock.sendall(Answer(CONTROL, 200, json.dumps(facts).encode()).frame())
    threads = []
    with sock.makefile("rb") as stream:
        for ask in read_asks(stream):
            thread = threading.Thread(target=answer, args=(sock, ask), daemon=ask.body == b"hang")
            thread.start()
            threads.append(thread)
    for thread in threads:
        if not thread.daemon:
            thread.join()


def _config(folder: str) -> str:
    path = Path(folder) / "config.json"
    return path.read_text() if path.exists() else ""


def answer(sock: socket.socket, ask: Ask) -> None:
    word, _, rest = ask.body.decode("latin-1").partition(" ")
    if word == "die":
        os._exit(9)
    if word == "hang":
        time.sleep(60)
    if word == "wait":
        time.sleep(float(rest))
    body = json.dumps({"pid": os.getpid(), "head": ask.head, "bytes": len(ask.body)}).encode()
    sock.sendall(Answer(ask.id, 200, body, 1, 0.001, 0.002, 0.003).frame())


if __name__ == "__main__":
    main()
