"""The operator's own broker: its configuration, users, rules, queues and certificates."""
