"""Compress big pretrained networks by searching over block substitutions."""

__version__ = "0.1.0"
