"""`python -m infra.command`: the `tidemill` command without its script."""

from __future__ import annotations

from infra.command.main import main

if __name__ == "__main__":
    main()
