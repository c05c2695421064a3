"""`python -m rhizome`."""

import sys

from rhizome.cli import main

sys.exit(main())
