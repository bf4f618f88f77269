"""How fast rows train: Tidemill's loader and loop beside torch's `DataLoader` and tensors in memory."""
