"""Trains the embedded teacher: pictures, posters, autoencoder, U-Net, export."""
