"""What people see of a run: its summary, the pictures and films, the file beside them."""
