"""One module per command: flags in, a call, an exit code out."""
