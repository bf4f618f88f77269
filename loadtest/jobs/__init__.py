"""How fast, how fair and how sure jobs are run: `tidemill bench jobs`."""
