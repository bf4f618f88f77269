"""When to train, and on what: policies over a recorded stream, in lockstep, by the code that runs live.

In the order of the road: `declared` (what a policy is, and those that are tried), `recorded` (the stream as
it was announced), `walk` (one policy's decisions, trainings and answers, window after window), `training`
(every experiment trained once, and kept), `result` (scores against costs, the frontier), `picture`, `run`.
"""
