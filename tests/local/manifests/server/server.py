"""A server that says its name, and is well unless a file in SWITCHES says otherwise.

The file is `not-PATH` for every pod, or `not-PATH-POD` for one of them.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

switches = Path(os.environ["SWITCHES"])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        switch = f"not-{self.path.strip('/')}"
        well = not any((switches / s).exists() for s in (switch, f"{switch}-{os.environ['NAME']}"))
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
