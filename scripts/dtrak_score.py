"""The documented entry point of ``sat attribute score``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["attribute", "score", *sys.argv[1:]])
