"""``python -m sb3_diffrl`` is the command ``sb3-diffrl``."""

import sys

from sb3_diffrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
