"""Importers of other connectomes: one module per layout, and `layouts`, which chooses among them."""
