"""How good clips are: distance to real music (FAD) and agreement with their prompts, through CLAP."""
