"""`python -m sdr1` is the `sdr1` command."""

import sys

from sdr1.cli import main

sys.exit(main())
