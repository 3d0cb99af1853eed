"""`accel bench`: settings beside each other, in speed and in quality."""
