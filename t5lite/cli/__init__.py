"""The commands. Each parses its flags, builds its roots from gin, and calls the other packages."""
