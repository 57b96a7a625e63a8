"""Network architectures and the features they take, in torch."""
