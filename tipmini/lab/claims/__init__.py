"""The claims audit: what papers say, and whether it holds in their own cells and at this scale.

declared: book/claims.yaml, a quoted sentence each with its checks and the verdicts declared of it.
evidence: what the checks may look at. proportions: tests of accuracies of which rows are unknown.
in_print: checks from the printed cells. here: checks from the cells measured for this book.
audit: runs them and refuses a verdict that is not the declared one. page: the tables of the book.
"""
