"""From prompts to audio: the documented functions, and clips on disk that say how they were made."""
