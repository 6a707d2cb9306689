"""What the book shows of runs: figures, tables, and the paper's claims beside the records."""
