"""HTML pages of participants and of a group, made from the files on disk."""
