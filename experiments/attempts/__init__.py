"""What was tried to mend the switch, and to better soft synergy: an idea a file, as a rival is."""
