"""Training of anatomical embeddings: data cache, views, losses, trainer, evaluation."""
