"""Faults on purpose, against real Kafka: what was sent is held against what came of it.

    tidemill bench faults --seconds 60 --seed 7 --brokers 3

`schedule` says what happens when, from a seed alone. `sender` sends events and keeps its own account of what
the cluster acknowledged. `stage` has the processes (brokers behind `proxy`, workers, a `disk` of their own)
and lets the faults happen to them. `checker` compares the account with the dataset, the dead letters and the
announcements; it shares no code with what it checks. `report` is what it comes to.
"""
