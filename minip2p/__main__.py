"""Makes `python -m minip2p` the command `minip2p`."""

import sys

from minip2p.cli.main import main

sys.exit(main())
