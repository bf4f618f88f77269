"""The dataset's log as ledger: commits and their fence, and the upkeep of its files."""
