"""The relay's flags: one table, from which come options, environment, file and help."""
