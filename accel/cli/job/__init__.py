"""`accel generate --prompts`: one output for each line of a file, over as many starts and processes as it takes.

Nothing is kept of a job but its outputs: a line is done when its side file and its output stand in the folder and say
that they were made as the line asks. So a job may be killed at any moment, and started again with other processes.
"""
