"""What a run needs of the machine: memory, processors, locks, logs."""
