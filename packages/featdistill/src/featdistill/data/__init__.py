"""Readers and writers of the files that featdistill works on."""
