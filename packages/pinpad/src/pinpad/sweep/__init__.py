"""Many trainings, each evaluated and drawn: what a comparison of conditions is made of."""
