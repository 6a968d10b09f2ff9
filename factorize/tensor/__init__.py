"""Pure maths on tensors: no files, no convolutions. float64 in, float64 out."""
