"""Attempts to mend the switch and to improve soft synergy: one idea a file, as for the rivals."""
