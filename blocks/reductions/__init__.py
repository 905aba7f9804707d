"""Recipes that work on whatever they fit: `nas blocks` lists them."""
