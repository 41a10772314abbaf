"""The commands. Each builds its root from gin and puts the rooms together."""
