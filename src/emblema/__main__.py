"""`python -m emblema` is the command line."""

import sys

from emblema.cli import main

if __name__ == "__main__":
    sys.exit(main())
