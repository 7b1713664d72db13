"""The documented entry point of ``sat train-lora``."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    main(["train-lora", *sys.argv[1:]])
