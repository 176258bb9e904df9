"""Results: stored runs -> tables and statistics.

A run's `metrics.json` is the truth; `records` reads trees of them, `tables` makes tables of records, `formats` writes
a table as text, Markdown, CSV, LaTeX or JSON. `logs` reads the `log.txt` of runs that others made.
"""
