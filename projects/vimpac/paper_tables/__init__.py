"""The paper's tables: what their rows are, how they are run, and what came out."""
