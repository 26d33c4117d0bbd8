"""Teach a trained network something new without losing what it can do."""
