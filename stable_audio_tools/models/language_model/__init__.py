"""Language models over the tokens of a codec."""
