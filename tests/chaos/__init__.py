"""Real processes and real brokers, hurt again and again while they work; then what they promised is counted.

`run` is one run against one broker, `plan` draws what is done, `moments` waits until it hits, `faults`
does it, `record` shows from the coordinator's log that it hit, and `checks` counts what was lost.
"""
