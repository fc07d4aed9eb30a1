"""`python -m workshop_lib.models prepare|path [MODEL]`."""

import sys

from workshop_lib.models import main

if __name__ == "__main__":
    sys.exit(main())
