"""`python -m workshop_lib.serving.models prepare [MODEL]`: a hub id or a folder."""

import argparse
import signal
import sys

from workshop_lib.errors import ModelError
from workshop_lib.serving.models import DEFAULT_MODEL, prepare

parser = argparse.ArgumentParser(prog="python -m workshop_lib.serving.models")
parser.add_argument("command", choices=["prepare"], help="make a model ready")
parser.add_argument("name", nargs="?", default=DEFAULT_MODEL, help="hub id or folder")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the work folder is removed
try:
    prepare(parser.parse_args().name, on_progress=lambda line: print(line, flush=True))
except ModelError as error:
    sys.exit(f"ModelError: {error}")
