"""The documented entry point of ``sat evaluate checkpoint``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["evaluate", "checkpoint", *sys.argv[1:]])
