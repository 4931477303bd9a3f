"""The tests of fedbus; see CONTRIBUTING.md."""
