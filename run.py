#!/usr/bin/env python3
"""The BIDS App's entrypoint."""

import sys

import bids_lacuna.cli

if __name__ == "__main__":
    sys.exit(bids_lacuna.cli.main())
