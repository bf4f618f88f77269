"""Load and fault drivers: what Tidemill does under pressure, and while its parts are killed."""
