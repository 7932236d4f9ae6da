"""Measurements behind the figures in docs/, one module each; run by tools/benchmark.py.

A benchmark of the data path is a function that returns a `Result`; to add a subcommand to the tool,
write its function here and its arguments there. The commands that compare models are in
`models_command`.
"""
