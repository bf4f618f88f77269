"""What a person asks of a dataset: its windows, what is in them, how two differ, which labels have come."""
