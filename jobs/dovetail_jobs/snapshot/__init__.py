"""A job's code as it was when the job was submitted: packed once, run by every attempt."""
