"""The benchmarks of genesis: what is measured, against whom, and what is written about it.

`parts` says what a full run measures, `peers` has one file a peer, `goals` what is to be reached.
`jobs` starts a `worker` process for each job, `measure` works in it, beside the `floors` of the
machine. `report` and `plots` make docs/benchmarks.md of the `results`.
"""
