"""What sits between encoder and decoder of an autoencoder."""
