"""``fedbus-coordinator doctor``: what may keep a coordinator from its work, measured."""
