"""How fast the program is, beside what it is measured against: `make bench` runs all of it."""
