"""What is computed of each lesion."""
