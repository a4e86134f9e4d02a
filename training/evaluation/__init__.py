"""What is measured of a model, how sure it is, and how it is shown."""
