"""Small layers that several backbones share."""
