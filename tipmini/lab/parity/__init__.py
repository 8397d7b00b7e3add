"""Whether merges agree with those of other libraries: every case declared, measured, published.

inputs: what both sides are given. theirs, ours: the two sides. cases: the table of comparisons.
measure: runs it and stores results/parity.json. stored: reads that and makes the page's tables.
"""
