"""Model code that comes with Tidemill: functions of a `TrainingContext`."""
