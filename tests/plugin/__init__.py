"""The pytest plugin, used as somebody else would use it."""
