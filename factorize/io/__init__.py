"""Safe loading of models, and datasets."""
