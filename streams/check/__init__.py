"""What is wrong with a pipeline, said before anything runs."""
