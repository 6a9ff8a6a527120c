"""Robot policies that see a drawn 2-D path."""
