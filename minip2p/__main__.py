"""`python -m minip2p` is the command `minip2p`."""

import sys

from minip2p.cli.main import main

sys.exit(main())
