"""A tap: a reader beside a federation that records what passes at the broker, and can open none of it."""
