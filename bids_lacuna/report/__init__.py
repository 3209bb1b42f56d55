"""Pages for people, made from what is on disk."""
