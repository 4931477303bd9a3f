"""Moves bytes: buses, ports to the machine, the journal. Knows events only in mailbox and transfer."""
