"""A recording for others: the same history under throw-away keys and neutral names."""


class ExportRefused(Exception):
    """There is no export. The text says why, and what to do."""
