"""``python -m gateway``, the same as ``narrowgate``."""

import sys

from gateway.cli import main

sys.exit(main())
