"""The documented entry point of ``sat attribute extract``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["attribute", "extract", *sys.argv[1:]])
