"""Where the metrics of a run are written: one file for each format, behind one protocol."""
