"""The report of one run or several: a self-contained HTML file."""
