"""The claims audit: what papers say, and whether it holds in their own cells and at this scale.

declared: book/claims.yaml, a quoted sentence each with its checks and the verdicts declared of it.
evidence: what the checks may look at. proportions: tests of accuracies of which rows are unknown.
in_print: checks from TIP's printed cells. pruned: checks from LoRAPrune's printed numbers.
here: checks from what was measured for this book. settings: checks of how it was measured.
pruned_here, pruned_words: checks on pruned models. bench_here: on the bench of pruning.
pruning_settings: of how was pruned and timed. combined: of sentences that claim several things.
audit: runs them and refuses a verdict that is not the declared one.
printed_tables: the papers' tables recomputed. page: whatever the page of the book shows.
"""
