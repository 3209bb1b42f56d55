"""The commands: what they do, in order."""
