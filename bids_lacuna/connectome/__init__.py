"""A normative connectome: opened, made, and checked."""
