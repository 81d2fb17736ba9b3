"""A page around a pipeline: what it can draw is found from the pipelines themselves, and shown with Gradio."""
