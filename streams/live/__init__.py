"""The live model's answers against the labels as they come: counted once, in the dataset's log.

`pending` matches answers with labels, `tally` counts them by model version, pane and slice. `judge` is told
of records and says what to commit: by `assessor` while a worker runs, by the lab over what is there already.
`track` folds the commits into what the triggers look at.
"""
