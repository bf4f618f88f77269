"""From a job event to a model event: admission, a process of its own, evaluation, gate, publication."""
