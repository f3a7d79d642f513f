"""The functions behind the commands: open, convert, verify, compare, explain."""
