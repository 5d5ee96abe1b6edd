"""Geometry of point clouds: farthest points (`fps`), neighbours (`neighbours`), padded and packed layouts (`layout`)."""
