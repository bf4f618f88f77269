"""What is known of rows by pane and window: exact accounts, and profiles by sketches."""
