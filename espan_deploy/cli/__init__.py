"""The command line: the only part that parses options, prints, or exits."""
