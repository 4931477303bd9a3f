"""The device's side: a small resident that talks to the broker, and a worker process that trains."""
