"""The documented entry point of ``sat evaluate precompute``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["evaluate", "precompute", *sys.argv[1:]])
