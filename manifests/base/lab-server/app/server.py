"""A model server in miniature: a front that answers HTTP, and an engine in a process of its own.

What it serves is small (the articles that fit a reader best); what can go wrong with it is not: it
has a load time, a port, two paths that a probe may ask, and an engine that can die while the front
lives. `/ping` answers while the front lives, `/health` only while the engine does.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

ARTICLES, FEATURES, BEST = 500, 16, 5


def engine():
    """Load, say READY, and answer each line of numbers of readers with articles."""
    time.sleep(float(os.environ["LOAD_S"]))  # stands for reading gigabytes from a volume
    articles = [
        random.Random(number).choices(range(-9, 10), k=FEATURES) for number in range(ARTICLES)
    ]
    print("READY", flush=True)
    for line in sys.stdin:
        taste = random.Random(int(line)).choices(range(-9, 10), k=FEATURES)
        scores = [sum(a * b for a, b in zip(article, taste, strict=True)) for article in articles]
        best = sorted(range(ARTICLES), key=scores.__getitem__)[-BEST:][::-1]
        print(json.dumps(best), flush=True)


class Engine:
    """The engine's process, as the front sees it."""

    def __init__(self):
        self.ready = False
        self._turn = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "engine"],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._load, daemon=True).start()

    def _load(self):
        self.ready = self.process.stdout.readline() == "READY\n"
        if self.ready:
            say(f"the engine, process {self.process.pid}, is ready")

    @property
    def state(self):
        """`ok`, or what is the matter with it."""
        code = self.process.poll()
        if code is not None:
            return f"EngineDeadError: the engine, process {self.process.pid}, ended with {code}"
        return "ok" if self.ready else "the engine is loading"

    def articles(self, reader):
        """The articles that fit a reader best."""
        with self._turn:
            self.process.stdin.write(f"{reader}\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())


class Front(BaseHTTPRequestHandler):
    """Answers; the engine does the work."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Answer the path that is asked for."""
        url = urlparse(self.path)
        state = self.server.engine.state
        if url.path == "/ping":
            self._answer(200, {"front": "ok"})
        elif url.path == "/health":
            status = 200 if state == "ok" else 503
            self._answer(status, {"engine": state, "pid": self.server.engine.process.pid})
        elif url.path == "/articles" and state == "ok":
            reader = int(parse_qs(url.query).get("reader", ["0"])[0])
            try:
                self._answer(200, {"articles": self.server.engine.articles(reader)})
            except (OSError, ValueError):
                self._answer(503, {"error": "try again later"})
        elif url.path == "/articles":
            say(f"{state}: 503 for {self.path}")
            self._answer(503, {"error": "try again later"})  # the log tells why
        else:
            self._answer(404, {"error": f"there is no {url.path}"})

    def _answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Probes ask every second: nothing is said of a request that went well."""


def say(text):
    """A line of the log, with the time."""
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", flush=True)


def main():
    """Listen, start the engine, and answer until told to stop."""
    host, port = os.environ["LISTEN_HOST"], int(os.environ["LISTEN_PORT"])
    server = ThreadingHTTPServer((host, port), Front)
    server.daemon_threads = True
    server.engine = Engine()

    def stop(*_):
        say("told to stop")
        server.engine.process.kill()
        os._exit(143)

    signal.signal(signal.SIGTERM, stop)
    say(f"the front listens on {host}:{port}; the engine loads for {os.environ['LOAD_S']} s")
    server.serve_forever()


if __name__ == "__main__":
    engine() if sys.argv[1:] == ["engine"] else main()
