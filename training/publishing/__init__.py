"""What is shown and published: drawings, the finished pipeline, its card."""
