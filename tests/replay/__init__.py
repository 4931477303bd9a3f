"""Recordings: told again for others, and kept, so that later releases read what earlier ones wrote."""
