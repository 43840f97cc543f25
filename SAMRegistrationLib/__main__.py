"""`python -m SAMRegistrationLib` is the command line `samreg`."""

import sys

from .cli import main

sys.exit(main())
