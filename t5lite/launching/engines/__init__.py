"""Where trials run: one file or folder for each engine, behind one protocol."""
