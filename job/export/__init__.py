"""Artefacts from the trained model, each reopened and compared before it may be listed."""
