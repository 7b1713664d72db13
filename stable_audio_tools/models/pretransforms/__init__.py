"""What stands between audio and a model: autoencoders, wavelets, patches, published codecs."""
