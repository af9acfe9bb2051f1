"""`python -m vpeft`: the command line, as launchers of several processes start it."""

import sys

from vpeft.cli import main

if __name__ == "__main__":
    sys.exit(main())
