"""The documented entry point of ``sat train``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
