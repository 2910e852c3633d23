"""Recipes for images, with the hyperparameters of each dataset."""
