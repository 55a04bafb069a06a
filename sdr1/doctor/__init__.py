"""What a job will run on, looked at before it starts: one line a check, with what to fix."""
