"""Network architectures and their input features, in torch."""
