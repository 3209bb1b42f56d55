#!/usr/bin/env python3
"""Entry point of the BIDS App."""

import sys

import bids_lacuna.cli

if __name__ == "__main__":
    sys.exit(bids_lacuna.cli.main())
