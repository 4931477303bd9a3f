"""What federated learning comes to under fedbus: accuracies, rounds, bytes and virtual time, seed by seed."""
