"""The `tidemill` command. Its sub-commands read like the road: up, push, worker, trainer, watch, demo."""

from __future__ import annotations

from infra.command.main import main

__all__ = ["main"]
