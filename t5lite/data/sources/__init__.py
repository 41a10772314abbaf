"""Sources of records: TFDS data sets, and files in several formats that are built into one."""
