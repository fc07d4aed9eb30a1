"""A server that says its name, and is well unless a file in SWITCHES says otherwise."""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

switches = Path(os.environ["SWITCHES"])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        well = not (switches / f"not-{self.path.strip('/')}").exists()
        self.send_response(200 if well else 503)
        self.end_headers()
        self.wfile.write(os.environ["NAME"].encode())

    def log_message(self, *arguments):
        pass


address = (os.environ["ADDRESS"], int(os.environ["PORT"]))
server = HTTPServer(address, Handler)
print("listening at", *address, flush=True)
sys.stdout.flush()
server.serve_forever()
