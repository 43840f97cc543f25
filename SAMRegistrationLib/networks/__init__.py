"""Networks as plain torch modules: no files, no geometry."""
