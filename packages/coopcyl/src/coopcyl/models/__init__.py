"""The network, its matches and poses: tensors in, metric geometry out, no files."""
