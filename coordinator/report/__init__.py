"""``fedbus-coordinator jobs report``: what happened in a job, as one page."""
