"""What is trained: new components, saved ones, text encoders, adapters."""
