"""`python -m loadtest.ingest`: how fast one worker takes the demo's year in."""

from __future__ import annotations

import sys

from loadtest.ingest.flights import main

if __name__ == "__main__":
    sys.exit(main())
