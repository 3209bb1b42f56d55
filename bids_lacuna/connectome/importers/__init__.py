"""Importers of the connectomes that people have: a module for each layout, and `layouts` to choose among them."""
