"""One suite for every bus: what `broker.bus` promises, transport by transport."""
