"""The group level: which lesions, and what their maps have in common."""
