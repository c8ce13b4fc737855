"""`python -m dsjax` is `dsjax`."""

import sys

from dsjax.cli.main import main

sys.exit(main())
