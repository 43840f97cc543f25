"""Registration of medical volumes by self-supervised anatomical embeddings."""
