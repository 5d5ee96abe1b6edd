"""Model families, one file each, whole with decoder or head."""
