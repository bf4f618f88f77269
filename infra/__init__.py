"""What everything else stands on: the broker, settings, logs, the dataset's reader and the command line."""
