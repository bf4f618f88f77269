"""What ingest keeps of its speed while a training runs beside it: `tidemill bench beside`."""
