"""What MODEL may be: files, names, the built-in example; all become an `nn.Module`."""
