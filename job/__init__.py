"""tunejob: one JSON spec in, a proven fine-tuned model out."""

__version__ = "0.1.0"
