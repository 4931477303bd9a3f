"""``fedbus-coordinator demo``: a federation on one machine, as in real life."""
