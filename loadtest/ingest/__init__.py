"""The same work by everybody: Tidemill's ingest, its peers and its limits, on one broker, in one run."""
