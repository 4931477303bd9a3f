"""What coordinator and devices must agree on, byte for byte. Imports nothing else of fedbus."""
