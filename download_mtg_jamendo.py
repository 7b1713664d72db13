"""The documented entry point of ``sat download-jamendo``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["download-jamendo", *sys.argv[1:]])
