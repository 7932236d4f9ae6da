"""Measurements behind the figures in docs/, one module each; run by tools/benchmark.py.

A benchmark is a function that returns a `Result`. To add a subcommand to the tool, write its
function here and its arguments there.
"""
