"""`python -m vpeft`: the command line, if the `vpeft` script is not on the path."""

import sys

from vpeft.cli import main

sys.exit(main())
