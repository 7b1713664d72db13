"""How good generated clips are: distance to real music (FAD) and agreement with their prompts, through
CLAP."""
