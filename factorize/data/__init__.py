"""What DATA may be: folders, arrays, loaders, the built-in example; all become `types.Data`."""
