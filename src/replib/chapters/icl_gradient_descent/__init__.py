"""What the chapter on in-context learning by gradient descent (von Oswald et al., 2212.07677) needs
of its own: tasks, reference algorithms, the network, its trainings, and the measures."""
