"""Paths from vision-language models: asking, keeping the answers, reading them."""
