"""Pipelines that come with Tidemill."""
