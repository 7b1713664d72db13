"""The documented entry point of ``sat pre-encode``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["pre-encode", *sys.argv[1:]])
