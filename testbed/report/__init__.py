"""report.html of a run: one file that opens anywhere, with its plots and style inside and nothing fetched."""
