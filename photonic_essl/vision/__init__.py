"""The benchmarks of arXiv 2111.00899 on images, with the symmetry, objectives and training of the photonics."""
