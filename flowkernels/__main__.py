"""``python -m flowkernels`` is the command ``flowkernels``."""

import sys

from .cli import main

sys.exit(main())
