"""Entry point of `python -m bids_lacuna`, the same program as `bids-lacuna`."""

import sys

import bids_lacuna.cli

if __name__ == "__main__":
    sys.exit(bids_lacuna.cli.main())
