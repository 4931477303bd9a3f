"""What both sides agree on: round trips, golden vectors, and everything that must be refused."""
