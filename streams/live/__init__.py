"""The live model's answers against the labels as they come: counted once, in the dataset's log.

`pending` matches answers with labels, `tally` counts them by model version, pane and slice, `assessor`
commits the counts, `track` folds the commits into what the triggers look at.
"""
