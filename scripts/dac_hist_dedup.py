"""The documented entry point of ``sat dedup``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["dedup", *sys.argv[1:]])
