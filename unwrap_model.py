"""The documented entry point of ``sat unwrap``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["unwrap", *sys.argv[1:]])
