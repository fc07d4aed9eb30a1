"""`python -m workshop_lib.serving.models prepare|path [MODEL]`."""

import sys

from workshop_lib.serving.models import main

if __name__ == "__main__":
    sys.exit(main())
