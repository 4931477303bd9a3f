"""``python -m coordinator.cli`` is ``fedbus-coordinator``."""

import sys

from coordinator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
