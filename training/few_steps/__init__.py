"""Sampling in few steps, fitted to a network."""
